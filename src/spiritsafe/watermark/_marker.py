"""Marking while generating: who is marked with which key, and one reply's state.

A marker draws the token itself and hands on logits that leave only that token, unmarked steps included. So whatever a
host does to logits afterwards (temperature, top-k, top-p, its own draw) cannot change the token, the order of
processors does not matter, and the surprise a reply has spent is counted on exactly what it was sampled from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numba import njit

from spiritsafe.errors import BadInput, Refused
from spiritsafe.keys import HOUSE_SLOT, SLOTS, KeyId, KeySet, load_keys, read_passphrase
from spiritsafe.watermark._distribution import distribution, invert
from spiritsafe.watermark._marking import GREEDY_BELOW, Greedy, MarkerConfig, SchemeName
from spiritsafe.watermark._native import coin_threshold, marking_of
from spiritsafe.watermark._packing import coin_is_account
from spiritsafe.watermark._prf import U32, U64, Word, context_hash, key_words
from spiritsafe.watermark._types import Scheme
from spiritsafe.watermark.schemes import Kgw, scheme_for

__all__ = ["Marker", "Markers", "choose_marked", "one_hot"]


@dataclass(frozen=True, slots=True, eq=False)
class _Layers:
    """What marks one reply. Keys are two words each."""

    scheme: Scheme
    coin: U64
    epoch: U64
    account: U64
    below: np.uint64


class Markers:
    """Makes the markers of a key set.

    Raises:
        BadInput: the key set's marking has settings this version does not know.
    """

    def __init__(self, keys: KeySet, greedy: Greedy = "kgw", least_temperature: float = 0.7) -> None:
        self.keys, self.greedy, self.least_temperature = keys, greedy, least_temperature
        self.marking = marking_of(keys)

    @classmethod
    def open(cls, config: MarkerConfig) -> Markers:
        """Markers for a key file.

        Raises:
            BadInput: the key file cannot be read, or its marking is not understood.
        """
        secret = None if config.passphrase_file is None else Path(config.passphrase_file)
        keys = load_keys(Path(config.keys), read_passphrase(config.passphrase_env, secret))
        return cls(keys, config.greedy, config.least_temperature)

    def check_tokenizer(self, tokenizer_hash: str | None, where: str) -> None:
        """Raise `BadInput` if the key set is bound to another tokenizer: what it marks could not be read."""
        bound = self.keys.tokenizer_hash
        if bound is not None and bound != tokenizer_hash:
            raise BadInput(
                f"{where}: its tokenizer ({str(tokenizer_hash)[:12]}…) is not the one that {self.keys.id} marks for"
                f" ({bound[:12]}…); make a key set with this model's tokenizer"
            )

    def key_id(self, asked: str | None = None) -> KeyId:
        """The key id to mark under: as asked for, else the current epoch and the house slot.

        Raises:
            BadInput: malformed, another key set, no such epoch, or a slot beyond those that are committed.
            Refused: the epoch is retired or opened, or the account's key was opened.
        """
        if asked is None:
            return self.keys.key_id(self.keys.current, HOUSE_SLOT)
        key_id = KeyId.parse(asked)
        if key_id.key_set != self.keys.id:
            raise BadInput(f"key id {key_id}: this teacher marks with {self.keys.id}; use one of its key ids")
        if key_id.slot >= SLOTS:
            raise BadInput(f"key id {key_id}: account slots go from 0 to {SLOTS - 1}")
        epoch = self.keys.epoch(key_id.epoch)
        current = self.keys.current.name
        if epoch.state != "active":
            raise Refused(f"key id {key_id}: epoch {epoch.name} is {epoch.state} and marks no more; use {current}")
        if key_id.slot in epoch.opened_slots:
            raise Refused(f"key id {key_id}: this account's key was opened, anyone could imitate it; rotate the keys")
        return key_id

    def marker(
        self,
        key_id: KeyId,
        random: np.random.Generator,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> Marker:
        """A marker for one reply. `random` is the reply's own source of uniforms: it decides unmarked steps.

        Raises:
            Refused: the request is greedy and greedy requests are refused.
        """
        greedy: Greedy | None = None
        scheme = self.marking.scheme
        if temperature < GREEDY_BELOW:
            greedy = self.greedy
            if greedy == "refuse":
                raise Refused(
                    f"temperature {temperature:g}: a greedy reply cannot carry this mark; ask for at least"
                    f" {self.least_temperature:g}"
                )
            if greedy == "raise":
                temperature = self.least_temperature
            else:
                scheme, temperature = "kgw", 0.0
        layers = self._layers(key_id, scheme)
        return Marker(layers, key_id, greedy, self.marking.surprise_bits, random, temperature, top_p, top_k)

    def _layers(self, key_id: KeyId, scheme: SchemeName) -> _Layers:
        return _Layers(
            scheme_for(self.marking.under(scheme)),
            key_words(self.keys.coin_key(key_id.epoch, scheme))[0],
            key_words(self.keys.epoch_key(key_id.epoch, scheme))[0],
            key_words(self.keys.account_key(key_id.epoch, key_id.slot, scheme))[0],
            coin_threshold(self.marking.account_share),
        )


class Marker:
    """One reply being marked. A logits processor for one row: see `__call__`.

    key_id: what to record.  greedy: the rule that was applied to a greedy request; None if it was not greedy.
    keyed, unkeyed, skipped: tokens drawn with a mark, before the surprise was spent (or without a context), and after a
    context this reply had already used.
    """

    def __init__(
        self,
        layers: _Layers,
        key_id: KeyId,
        greedy: Greedy | None,
        surprise_bits: float,
        random: np.random.Generator,
        temperature: float,
        top_p: float,
        top_k: int,
    ) -> None:
        self._layers, self.key_id, self.greedy = layers, key_id, greedy
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self._random = random
        # Greedy replies to one prompt are equal anyway: there is no variety to spare them for.
        self._unspent = 0.0 if temperature == 0 else surprise_bits
        self._used: set[tuple[int, ...]] = set()
        self.keyed = self.unkeyed = self.skipped = 0

    @property
    def scheme(self) -> Scheme:
        return self._layers.scheme

    def __call__(self, prompt_ids: Sequence[int], generated: Sequence[int], logits_V: torch.Tensor) -> torch.Tensor:
        """Logits (V,) before temperature → logits that are 0 for the token drawn, -inf elsewhere. Once a step."""
        k = self.scheme.context_width
        tail = generated[-k:] if len(generated) >= k else [*prompt_ids, *generated][-k:]
        tokens_1 = choose_marked([self], [tail], logits_V[None])
        return one_hot(logits_V[None], tokens_1)[0]

    def hash_for(self, tail: Sequence[int]) -> int | None:
        """The hash to mark the next token with, given the tokens before it; None to leave it unmarked. Counts it."""
        window = tuple(tail)
        if self._unspent > 0 or len(window) < self.scheme.context_width:
            self.unkeyed += 1
            return None
        if window in self._used:
            self.skipped += 1
            return None
        self._used.add(window)
        self.keyed += 1
        layers = self._layers
        return int(_hash(np.array(window, np.uint32), layers.coin, layers.below, layers.epoch, layers.account))

    def uniform(self) -> float:
        """The reply's next uniform; one a step, marked or not, so that a seed decides the whole reply."""
        return float(self._random.random())

    def spend(self, p: float) -> None:
        """Account for a token of probability p."""
        if self._unspent > 0:
            self._unspent -= -math.log2(max(p, 1e-300))


def choose_marked(markers: Sequence[Marker], tails: Sequence[Sequence[int]], logits_BV: torch.Tensor) -> torch.Tensor:
    """The next token (B,) of each row, int64 on the logits' device; moves every marker one step on.

    tails: the last tokens before each row's next one, prompt included; `context_width` of them where there are.
    logits_BV: float32, before temperature.
    """
    hashes = [marker.hash_for(tail) for marker, tail in zip(markers, tails, strict=True)]
    tokens_B = torch.empty(len(markers), dtype=torch.long, device=logits_BV.device)
    cold = [row for row, marker in enumerate(markers) if marker.temperature == 0]
    if cold:
        tokens_B[cold] = _greedy(markers, hashes, cold, logits_BV)
    warm = [row for row, marker in enumerate(markers) if marker.temperature > 0]
    if not warm:
        return tokens_B
    rows = [markers[row] for row in warm]
    probs_BV = distribution(
        logits_BV if len(warm) == len(markers) else logits_BV[warm],
        [m.temperature for m in rows],
        [m.top_p for m in rows],
        [m.top_k for m in rows],
    )
    if min(m.top_p for m in rows) < 1:
        probs_BV /= probs_BV.sum(-1, keepdim=True)
    drawn_from = _marked(rows, [hashes[row] for row in warm], probs_BV)
    points = torch.tensor([m.uniform() for m in rows], dtype=torch.float64, device=logits_BV.device)
    chosen = invert(drawn_from, points)
    tokens_B[warm] = chosen
    for marker, p in zip(rows, probs_BV.gather(1, chosen[:, None])[:, 0].tolist(), strict=True):
        marker.spend(p)
    return tokens_B


def one_hot(logits_BV: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
    """Logits (B, V) under which only the given tokens can be chosen."""
    return torch.full_like(logits_BV, -torch.inf).scatter_(1, tokens_B[:, None], 0.0)


def _marked(markers: Sequence[Marker], hashes: Sequence[int | None], probs_BV: torch.Tensor) -> torch.Tensor:
    """The distributions to draw from: marked where there is a hash."""
    keyed = [row for row, h in enumerate(hashes) if h is not None]
    if not keyed:
        return probs_BV
    scheme = markers[0].scheme  # one key set marks every row that is not greedy with one scheme
    words = np.array([hashes[row] for row in keyed], np.uint64)
    if len(keyed) == len(hashes):
        return scheme.mark(words, probs_BV)  # type: ignore[no-any-return]
    drawn_from = probs_BV.clone()
    drawn_from[keyed] = scheme.mark(words, probs_BV[keyed])
    return drawn_from


def _greedy(
    markers: Sequence[Marker], hashes: Sequence[int | None], rows: Sequence[int], logits_BV: torch.Tensor
) -> torch.Tensor:
    """argmax of the logits, green tokens raised by δ where there is a hash."""
    raised = logits_BV[list(rows)]
    for place, row in enumerate(rows):
        h, scheme = hashes[row], markers[row].scheme
        if h is not None:
            assert isinstance(scheme, Kgw)
            green = scheme.green(np.array([h], np.uint64), raised.shape[1], raised.device)[0]
            raised[place] += scheme.delta * green
    return raised.argmax(-1)


@njit(cache=True)
def _hash(window_k: U32, coin_2: U64, below: Word, epoch_2: U64, account_2: U64) -> Word:
    """The context's hash under the key its coin gives it to."""
    if below > 0 and coin_is_account(context_hash(coin_2[0], coin_2[1], window_k), below):
        return context_hash(account_2[0], account_2[1], window_k)
    return context_hash(epoch_2[0], epoch_2[1], window_k)
