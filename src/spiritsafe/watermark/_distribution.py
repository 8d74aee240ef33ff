"""The distribution a reply is sampled from (temperature, top-k, nucleus), and drawing from it.

The one sampler that unmarked generation and marking share, so that a mark acts on exactly what would be sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

__all__ = ["distribution", "invert"]

_NUCLEUS_FIRST_LOOK = 512
_BLOCK = 128


def distribution(
    logits_BV: torch.Tensor, temperature_B: Sequence[float], top_p_B: Sequence[float], top_k_B: Sequence[int] = ()
) -> torch.Tensor:
    """Probabilities (B, V) float32 after temperature (> 0), then top-k (0: all), then top-p; ties stay in.

    A nucleus is not scaled up: such a row sums to what it holds, which `invert` allows for.
    """
    heat = torch.tensor(temperature_B, dtype=torch.float32, device=logits_BV.device)
    probs_BV = torch.softmax(logits_BV / heat[:, None], dim=-1)
    if any(top_k_B):
        probs_BV = _top_k(probs_BV, top_k_B)
    if min(top_p_B) < 1:
        probs_BV = _nucleus(probs_BV, torch.tensor(top_p_B, dtype=torch.float32, device=probs_BV.device))
    return probs_BV


def invert(probs_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """Inverse of each row's cumulative distribution at float64 points in [0, 1): first which block of tokens, then
    which token in it. Rows need not sum to 1.

    Only one block a row needs a running sum, which is the slow part over a whole vocabulary.
    """
    padding = -probs_BV.shape[1] % _BLOCK
    blocks = (F.pad(probs_BV, (0, padding)) if padding else probs_BV).reshape(len(probs_BV), -1, _BLOCK)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    point = uniform_B[:, None] * ends[:, -1:]
    block = _search(ends, point)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].cumsum(-1, dtype=torch.float64)
    return (block * _BLOCK + _search(inside, point - before))[:, 0]


def _search(cdf: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """First index whose cumulative sum exceeds the point; never one of probability 0, whatever the rounding."""
    total = cdf[:, -1:]
    return torch.searchsorted(cdf, torch.minimum(point, torch.nextafter(total, torch.zeros_like(total))), right=True)


def _top_k(probs_BV: torch.Tensor, top_k_B: Sequence[int]) -> torch.Tensor:
    """Zero what is below each row's k-th largest probability; k = 0 keeps the row."""
    vocab = probs_BV.shape[1]
    kept = [min(k, vocab) if k > 0 else vocab for k in top_k_B]
    largest = probs_BV.topk(max(k for k, asked in zip(kept, top_k_B, strict=True) if asked > 0), dim=-1).values
    least = torch.zeros_like(probs_BV[:, :1])
    for row, k in enumerate(kept):
        if k < vocab:
            least[row] = largest[row, k - 1]
    cut = torch.where(probs_BV >= least, probs_BV, 0.0)
    return cut / cut.sum(-1, keepdim=True)


def _nucleus(probs_BV: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """Zero what lies outside the smallest set of largest probabilities that reaches top_p (ties stay in)."""
    width = min(_NUCLEUS_FIRST_LOOK, probs_BV.shape[1])
    top = probs_BV.topk(width, dim=-1).values
    if width < probs_BV.shape[1] and bool((top.sum(-1) < top_p_B).any()):  # flat: only then pay for a whole sort
        top = probs_BV.sort(dim=-1, descending=True).values
    before = top.cumsum(-1) - top
    inside = before < top_p_B[:, None]
    inside[:, 0] = True
    least = torch.where(inside, top, torch.inf).amin(-1, keepdim=True)
    cut = torch.where(probs_BV >= least, probs_BV, 0.0)
    return torch.where(top_p_B[:, None] < 1, cut, probs_BV)
