"""The rows of a vLLM batch that are being marked, under either of vLLM 0.33's model runners. Imports nothing of vLLM.

A request's marker has state that must see each token of the reply once. What a host does with rows makes that the hard
part: rows move and swap, requests leave the batch and come back, prompts are prefilled in chunks whose drawn tokens are
thrown away, and under asynchronous scheduling the older runner shows −1 for tokens that are not back yet.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch

from spiritsafe.errors import BadInput, Refused, SpiritsafeError
from spiritsafe.watermark._marker import Marker, Markers, choose_marked, one_hot
from spiritsafe.watermark._marking import Greedy, MarkerConfig

__all__ = ["KEYS", "Slots", "SwappedRows", "check_host", "check_request", "markers"]

KEYS, PASSPHRASE, GREEDY = "SPIRITSAFE_KEYS", "SPIRITSAFE_PASSPHRASE", "SPIRITSAFE_GREEDY"
KEY_ID = "watermark_key_id"
_PARKED = 512  # requests out of the batch whose state is kept; vLLM does not tell a pause from an end


def markers() -> Markers | None:
    """The markers that the environment asks for, read once a process; None where it asks for none.

    Raises:
        BadInput: the key file or a setting is unusable.
    """
    path = os.environ.get(KEYS)
    return (
        _open(path, os.environ.get(GREEDY, "kgw"), PASSPHRASE if PASSPHRASE in os.environ else None) if path else None
    )


@lru_cache(maxsize=1)
def _open(path: str, greedy: str, passphrase_env: str | None) -> Markers:
    if greedy not in ("kgw", "raise", "refuse"):
        raise BadInput(f"{GREEDY}={greedy}: greedy requests can get kgw, raise or refuse")
    return Markers.open(MarkerConfig(keys=path, greedy=cast(Greedy, greedy), passphrase_env=passphrase_env))


def check_request(params: Any) -> None:
    """What vLLM calls before it admits a request.

    Raises:
        ValueError: the request names a key id that cannot mark, or is greedy where greedy requests are refused.
    """
    try:
        source, asked = markers(), _asked(params)
        if source is None:
            if asked is not None:
                raise BadInput(f"{KEY_ID} {asked}: this server marks nothing; set {KEYS} to a key file and restart it")
            return
        _marker(source, params, np.random.default_rng(0))
    except SpiritsafeError as error:
        raise ValueError(str(error)) from None


def check_host(config: Any, source: Markers) -> None:
    """Refuse engine settings under which marks would be wrong or missing.

    Raises:
        Refused: speculative decoding, vLLM's own watermark, or sampling that is split over ranks.
        BadInput: the model's tokenizer is not the one the key set is bound to.
    """
    for setting, why in (
        (getattr(config, "speculative_config", None), "speculative decoding picks tokens without this processor"),
        (getattr(config, "watermark_config", None), "vLLM's own watermark would mark the same tokens"),
        (getattr(config.parallel_config, "enable_batch_sharded_sampling", None), "a reply's state lives on one rank"),
    ):
        if setting:
            raise Refused(f"{KEYS}: {why}; switch it off, or unset {KEYS}")
    if source.keys.tokenizer_hash is not None:
        from transformers import AutoTokenizer

        from spiritsafe.tokens import tokenizer_hash

        model = config.model_config
        tokenizer = AutoTokenizer.from_pretrained(
            model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=model.trust_remote_code
        )
        source.check_tokenizer(tokenizer_hash(tokenizer), model.tokenizer)


def _asked(params: Any) -> str | None:
    asked = (params.extra_args or {}).get(KEY_ID)
    if asked is not None and not isinstance(asked, str):
        raise BadInput(f"{KEY_ID}: expected a key id as text, got {asked!r}")
    return asked


def _marker(source: Markers, params: Any, random: np.random.Generator) -> Marker:
    return source.marker(
        source.key_id(_asked(params)),
        random,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=max(0, params.top_k),
    )


class _Sources:
    """New markers, with the same random numbers on every rank that holds a copy of the batch."""

    def __init__(self, source: Markers, config: Any) -> None:
        self._source = source
        self._seeds = [config.model_config.seed or 0, config.parallel_config.data_parallel_rank]
        self._count = 0

    def maker(self, params: Any) -> Callable[[], Marker]:
        """Makes the request's marker, again with the same random numbers."""
        self._count += 1
        seeds = [params.seed % 2**64] if params.seed is not None else [*self._seeds, self._count]
        return lambda: _marker(self._source, params, np.random.default_rng(seeds))


class _Reply:
    """One request in the older runner. `output` is the host's own list, which grows by one a step."""

    def __init__(
        self, make: Callable[[], Marker], params: Any, prompt: Sequence[int] | None, output: list[int]
    ) -> None:
        self._make, self.params, self.prompt, self.output = make, params, list(prompt or ()), output
        self.marker = make()
        self.tokens: list[int] = []  # what stands in the output as far as known; −1 is unknown
        self._drawn = False

    def begin_step(self) -> None:
        """Learn which of the drawn tokens stayed."""
        length = len(self.output)
        if self._drawn and length == 0:  # a part of the prompt was prefilled, and what was drawn after it thrown away
            self.marker = self._make()
        del self.tokens[length:]
        self.tokens += self.output[len(self.tokens) :]
        recent = max(0, length - self.marker.scheme.context_width)
        for at in range(recent, length):
            if self.output[at] >= 0:
                self.tokens[at] = self.output[at]

    def tail(self) -> list[int]:
        """The tokens before the next one; none if one of them is not known."""
        k = self.marker.scheme.context_width
        tail = self.tokens[-k:] if len(self.tokens) >= k else [*self.prompt, *self.tokens][-k:]
        return [] if -1 in tail else tail

    def drew(self, token: int) -> None:
        self.tokens.append(token)
        self._drawn = True


class SwappedRows:
    """Rows of the older runner (V1): `update` for each batch update, then `apply` to logits (B, V) in place."""

    def __init__(self, source: Markers, config: Any) -> None:
        self._sources = _Sources(source, config)
        self._rows: dict[int, _Reply] = {}
        self._parked: OrderedDict[int, _Reply] = OrderedDict()

    def update(self, update: Any) -> None:
        if update is None:
            return
        # A row that another request takes over, by being added or moved there, is not listed as removed.
        for row in update.removed:
            self._park(self._rows.pop(row, None))
        for row, params, prompt, output in update.added:
            self._park(self._rows.pop(row, None))
            # The same list object means that a request has come back, after a pause or a preemption.
            back = self._parked.pop(id(output), None)
            self._rows[row] = back or _Reply(self._sources.maker(params), params, prompt, output)
        for one, two, direction in update.moved:
            moved, replaced = self._rows.pop(one, None), self._rows.pop(two, None)
            if moved is not None:
                self._rows[two] = moved
            if direction.name != "SWAP":
                self._park(replaced)
            elif replaced is not None:
                self._rows[one] = replaced

    def apply(self, logits_BV: torch.Tensor) -> torch.Tensor:
        if not self._rows:
            return logits_BV
        rows = sorted(self._rows)
        replies = [self._rows[row] for row in rows]
        shaped = logits_BV[rows].float()
        for place, reply in enumerate(replies):
            reply.begin_step()
            _penalise(shaped[place], reply)
        chosen = _choose([r.marker for r in replies], [r.params for r in replies], [r.tail() for r in replies], shaped)
        for reply, token in zip(replies, chosen.tolist(), strict=True):
            reply.drew(token)
        logits_BV[rows] = one_hot(shaped, chosen).to(logits_BV.dtype)
        return logits_BV

    def _park(self, reply: _Reply | None) -> None:
        if reply is not None:
            self._parked[id(reply.output)] = reply  # which keeps the list alive, so that its id stays its own
            if len(self._parked) > _PARKED:
                self._parked.popitem(last=False)


class Slots:
    """Requests of the newer runner (V2) by slot; tokens are read from the runner's own table.

    A request that was preempted comes back as a new one: its reply spends its surprise once more, unmarked.
    """

    def __init__(self, source: Markers, config: Any, states: Any) -> None:
        self._sources, self._states = _Sources(source, config), states
        self._slots: dict[int, tuple[Marker, Any]] = {}

    def add(self, slot: int, params: Any) -> None:
        self._slots[slot] = self._sources.maker(params)(), params

    def apply(self, logits_BV: torch.Tensor, context: Any) -> torch.Tensor:
        slots = context.idx_mapping_np
        # A prompt prefilled in part has a row too, whose token is thrown away.
        whole = context.seq_lens_upper_bound_np >= self._states.prefill_len.np[slots]
        rows = [row for row, slot in enumerate(slots.tolist()) if whole[row] and slot in self._slots]
        if not rows:
            return logits_BV
        used = [self._slots[int(slots[row])] for row in rows]
        shaped = logits_BV[rows].float()
        tails = self._tails([int(slots[row]) for row in rows], used[0][0].scheme.context_width)
        chosen = _choose([marker for marker, _ in used], [params for _, params in used], tails, shaped)
        logits_BV[rows] = one_hot(shaped, chosen).to(logits_BV.dtype)
        return logits_BV

    def _tails(self, slots: list[int], width: int) -> list[list[int]]:
        table, total = self._states.all_token_ids.gpu, self._states.total_len.gpu
        index = torch.tensor(slots, dtype=torch.long, device=table.device)
        lengths = total[index].long()
        at = lengths[:, None] + torch.arange(-width, 0, device=table.device)
        tokens, known = table[index[:, None], at.clamp(min=0)].tolist(), (at >= 0).sum(-1).tolist()
        return [row[width - count :] for row, count in zip(tokens, known, strict=True)]


def _choose(
    rows: Sequence[Marker], params: Sequence[Any], tails: Sequence[Sequence[int]], logits_BV: torch.Tensor
) -> torch.Tensor:
    """The next tokens, min_p applied as vLLM does it: relative to the likeliest token, after temperature."""
    for place, (marker, asked) in enumerate(zip(rows, params, strict=True)):
        if asked.min_p > 0 and marker.temperature > 0:
            row = logits_BV[place]
            row[row < row.max() + marker.temperature * math.log(asked.min_p)] = -torch.inf
    return choose_marked(rows, tails, logits_BV)


def _penalise(logits_V: torch.Tensor, reply: _Reply) -> None:
    """vLLM's penalties, in place: the older runner applies them only after custom processors."""
    params = reply.params
    repeat, often, present = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
    if repeat == 1 and often == 0 and present == 0:
        return
    vocab, device = len(logits_V), logits_V.device
    output = torch.tensor([t for t in reply.tokens if 0 <= t < vocab], dtype=torch.long, device=device)
    counts = torch.bincount(output, minlength=vocab).to(logits_V.dtype)
    seen = counts > 0
    if repeat != 1:
        before = torch.tensor([t for t in reply.prompt if 0 <= t < vocab], dtype=torch.long, device=device)
        either = seen | (torch.bincount(before, minlength=vocab) > 0)
        logits_V[either] = torch.where(logits_V > 0, logits_V / repeat, logits_V * repeat)[either]
    logits_V -= often * counts + present * seen
