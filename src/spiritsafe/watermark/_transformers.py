"""Marks inside `transformers`: a logits processor for `model.generate`.

transformers runs custom processors after its own (repetition penalty, minimum length …) and before the warpers
(temperature, top-k, top-p …), which see logits that leave one token only, and pass it through. Sampling settings that
`generate` gets would therefore have no effect: they are this processor's own arguments (see `from_config`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from spiritsafe.errors import BadInput, Refused
from spiritsafe.keys import KeyId
from spiritsafe.watermark._marker import Marker, Markers, choose_marked, one_hot

__all__ = ["WatermarkLogitsProcessor"]


class WatermarkLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Marks one call of `generate`; make a new one for each. Rows keep their own state in `markers`, in batch order.

    key_ids: one for all rows, or one a row; default: the current epoch and the house slot.
    temperature, top_p, top_k: how to sample; 0 temperature is greedy, see `Markers`.
    seed: decides, with the row, what is not marked; fresh by default.
    pad_token_id: what finished rows are filled with, and what pads prompts on the left.
    eos_token_id: one or several; a row is finished by one.

    Beams would each go on alone with their own marked tokens, so that nothing is searched: `from_config` refuses them.

    Raises:
        Refused: a key id that marks no more, or a greedy request where those are refused; while generating, rows
            that are not those marked so far: beams reordered, assisted decoding, a second call of `generate`.
        BadInput: the rows are not as many as the key ids.
    """

    def __init__(
        self,
        source: Markers,
        key_ids: KeyId | Sequence[KeyId] | None = None,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        pad_token_id: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> None:
        self._source = source
        asked = [source.key_id()] if key_ids is None else [key_ids] if isinstance(key_ids, KeyId) else key_ids
        self._key_ids = [source.key_id(str(key_id)) for key_id in asked]
        self._sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
        source.marker(
            source.key_id(), np.random.default_rng(0), **self._sampling
        )  # a refusal is told before generating
        self._seeds = np.random.SeedSequence(seed)
        self._pad = pad_token_id
        self._eos = set(_listed(eos_token_id))
        self.markers: list[Marker] = []
        self._live: list[int] = []
        self._left: list[int] = []
        self._chosen = torch.empty(0, dtype=torch.long)
        self._length = -1

    @classmethod
    def from_config(
        cls, source: Markers, config: Any, key_ids: KeyId | Sequence[KeyId] | None = None, *, seed: int | None = None
    ) -> WatermarkLogitsProcessor:
        """With the sampling settings of a `GenerationConfig`; other warpers it asks for are refused.

        Raises:
            Refused: beams, or a warper that this processor does not have.
        """
        if (config.num_beams or 1) > 1:
            raise Refused(f"num_beams is {config.num_beams}: beam search cannot be marked; sample instead")
        for name in ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"):
            if config.do_sample and getattr(config, name, None) not in (None, 0.0, 1.0):
                raise Refused(f"{name}: marks are made after temperature, top_k and top_p only; leave it out")
        ends = _listed(config.eos_token_id)
        pad = ends[0] if config.pad_token_id is None and ends else config.pad_token_id  # as `generate` does
        if not config.do_sample:
            return cls(source, key_ids, temperature=0.0, seed=seed, pad_token_id=pad, eos_token_id=ends)
        return cls(
            source,
            key_ids,
            temperature=1.0 if config.temperature is None else config.temperature,
            top_p=1.0 if config.top_p is None else config.top_p,
            top_k=config.top_k or 0,
            seed=seed,
            pad_token_id=pad,
            eos_token_id=ends,
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """One step: ids (B, T) so far and logits (B, V) → logits that leave each row one token."""
        if self._length < 0:
            self._begin(input_ids)
        else:
            self._follow(input_ids)
        self._length = input_ids.shape[1] + 1
        if not self._live:
            return scores
        tails = self._tails(input_ids)
        every = len(self._live) == len(self.markers)
        rows = [self.markers[row] for row in self._live]
        chosen = choose_marked(rows, tails, (scores if every else scores[self._live]).float())
        if every:
            self._chosen = chosen
            return one_hot(scores, chosen)
        self._chosen[self._live] = chosen
        shaped = scores.clone()
        shaped[self._live] = one_hot(scores[self._live], chosen)
        return shaped

    def _begin(self, input_ids: torch.Tensor) -> None:
        rows = input_ids.shape[0]
        key_ids = self._key_ids * rows if len(self._key_ids) == 1 else self._key_ids
        if len(key_ids) != rows:
            raise BadInput(
                f"{len(key_ids)} key ids for {rows} rows; give one, or one a row, returned sequences counted"
            )
        self.markers = [
            self._source.marker(key_id, np.random.default_rng(seed), **self._sampling)
            for key_id, seed in zip(key_ids, self._seeds.spawn(rows), strict=True)
        ]
        self._live = list(range(rows))
        self._chosen = torch.zeros(rows, dtype=torch.long, device=input_ids.device)
        self._left = _padding(input_ids, self._pad)

    def _follow(self, input_ids: torch.Tensor) -> None:
        """Check that the rows went on with the tokens chosen; a row that got padding instead is finished."""
        if input_ids.shape != (len(self.markers), self._length):
            raise Refused("these rows are not the ones marked so far; make a new processor for each call of generate")
        last = input_ids[:, -1]
        for row in (last != self._chosen.to(last.device)).nonzero()[:, 0].tolist():
            if row not in self._live:
                continue
            if self._pad is None or int(last[row]) != self._pad:
                raise Refused(
                    f"row {row} did not go on with the token chosen: beam search and assisted decoding cannot be"
                    " marked (or name the model's pad_token_id)"
                )
            self._live.remove(row)
        ended = last.tolist()
        self._live = [row for row in self._live if ended[row] not in self._eos]

    def _tails(self, input_ids: torch.Tensor) -> list[list[int]]:
        """The last tokens of the rows still alive; a short prompt's padding is no context."""
        first = max(input_ids.shape[1] - self.markers[0].scheme.context_width, 0)
        tails: list[list[int]] = input_ids[self._live, first:].tolist()
        return [tail[max(self._left[row] - first, 0) :] for row, tail in zip(self._live, tails, strict=True)]


def _listed(tokens: int | Sequence[int] | None) -> list[int]:
    return [] if tokens is None else [tokens] if isinstance(tokens, int) else list(tokens)


def _padding(input_ids: torch.Tensor, pad: int | None) -> list[int]:
    """How many padding tokens each row begins with."""
    if pad is None:
        return [0] * input_ids.shape[0]
    real_BT = torch.cat([input_ids != pad, torch.ones_like(input_ids[:, :1], dtype=torch.bool)], dim=1)
    return [int(at) for at in real_BT.int().argmax(-1)]
