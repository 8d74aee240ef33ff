"""From logits to tokens: temperature, nucleus, seeds that hold in any batch, and top-k log-probabilities.

A row's draw depends on its own seed and step only: one uniform number from the request's own counter-based generator
(Philox), put through the inverse of the row's cumulative distribution. Nothing is shared between rows.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from spiritsafe.records import SparseLogprobs
from spiritsafe.watermark._distribution import distribution, invert

__all__ = ["LogprobRows", "choose", "generator", "top_logprobs"]


def generator(seed: int | None, index: int) -> np.random.Generator:
    """The source of uniforms for reply `index` of a request; without a seed, a fresh one."""
    entropy = secrets.randbits(64) if seed is None else seed % 2**64
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([entropy, index])))


def choose(
    logits_BV: torch.Tensor, temperature: Sequence[float], top_p: Sequence[float], uniform: Sequence[float]
) -> list[int]:
    """Pick one token per row; temperature 0 takes the largest logit.

    logits_BV: (B, V) float32.  temperature, top_p, uniform (in [0, 1)): one per row.
    """
    drawn = [row for row, t in enumerate(temperature) if t > 0]
    if len(drawn) < len(temperature):
        picked = logits_BV.argmax(-1)
    else:
        picked = torch.empty(len(drawn), dtype=torch.long, device=logits_BV.device)
    if drawn:
        probs = distribution(logits_BV[drawn], [temperature[row] for row in drawn], [top_p[row] for row in drawn])
        point = torch.tensor([uniform[row] for row in drawn], dtype=torch.float64, device=probs.device)
        picked[drawn] = invert(probs, point)
    return [int(token) for token in picked.tolist()]


def top_logprobs(logits_NV: torch.Tensor, chosen_N: torch.Tensor, k: int) -> LogprobRows:
    """Exact log-probabilities at temperature 1 over the V given logits: of the chosen tokens, and the k largest."""
    logprobs = torch.log_softmax(logits_NV.float(), dim=-1)
    top = logprobs.topk(min(k, logprobs.shape[1]), dim=-1)
    chosen = logprobs.gather(-1, chosen_N[:, None])[:, 0]
    return LogprobRows(chosen.cpu().numpy(), top.values.cpu().numpy(), top.indices.to(torch.int32).cpu().numpy())


class LogprobRows:
    """N positions' log-probabilities as arrays: chosen (N,), top (N, k), ids (N, k)."""

    def __init__(self, chosen: NDArray[np.float32], top: NDArray[np.float32], ids: NDArray[np.int32]) -> None:
        self.chosen, self.top, self.ids = chosen, top, ids

    def row(self, index: int, k: int) -> LogprobRows:
        """One position, cut to its own k."""
        one = slice(index, index + 1)
        return LogprobRows(self.chosen[one].copy(), self.top[one, :k].copy(), self.ids[one, :k].copy())

    @staticmethod
    def sparse(rows: Sequence[LogprobRows], tokens: Sequence[int], table: Sequence[bytes]) -> SparseLogprobs:
        """Join positions; `table` names each token's bytes."""
        ids = np.concatenate([row.ids for row in rows])
        return SparseLogprobs(
            chosen=np.concatenate([row.chosen for row in rows]),
            top=np.concatenate([row.top for row in rows]),
            ids=ids,
            token_bytes=tuple(table[token] for token in tokens),
            top_bytes=tuple(tuple(table[i] for i in row) for row in ids.tolist()),
        )
