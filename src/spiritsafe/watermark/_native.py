"""Detection of Spiritsafe's own marks: the epoch layer, and who speaks for which position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput
from spiritsafe.keys import KEY_BYTES, KeySet, decoy_keys
from spiritsafe.watermark._marking import Marking, SchemeName
from spiritsafe.watermark._packing import identities, unique_hashes
from spiritsafe.watermark._prf import U32, U64, context_hashes, key_words
from spiritsafe.watermark._types import F64, Reading, Scheme, Scores
from spiritsafe.watermark.schemes import scheme_for

__all__ = ["NativeDetector", "coin_threshold", "marking_of"]

_COIN_BITS = 53


def marking_of(keys: KeySet) -> Marking:
    """The key set's marking, validated.

    Raises:
        BadInput: it has settings this version does not know.
    """
    return parse_config(keys.marking, Marking, where=f"marking of {keys.id}")


def coin_threshold(account_share: float) -> np.uint64:
    """Coins whose top 53 bits are below this give their context to the account's key."""
    return np.uint64(round(account_share * 2**_COIN_BITS))


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """One epoch's keys, as words. The coin's key also partitions for decoys and accounts."""

    name: str
    key: U64
    coin: U64


class NativeDetector:
    """A `Detector` for the epoch layer of a key set: positions that the coin gives to the epoch key.

    marking: the key set's own by default.  epochs: names; default all, newest first. Every one of them is a trial.
    scheme: read another scheme's marks under the same settings, such as the KGW marks of greedy replies.

    Raises:
        BadInput: no such epoch, or a marking that this version does not know.
    """

    keyed_reading = False

    def __init__(
        self,
        keys: KeySet,
        marking: Marking | None = None,
        epochs: Sequence[str] | None = None,
        scheme: SchemeName | None = None,
    ) -> None:
        marking = marking or marking_of(keys)
        self.marking = marking.under(scheme or marking.scheme)
        names = (
            [e.name for e in reversed(keys.epochs)] if epochs is None else [keys.epoch(name).name for name in epochs]
        )
        if not names:
            raise BadInput(f"{keys.id}: no epoch to test; name at least one")
        name = self.marking.scheme
        self._settle(
            [_Trial(e, key_words(keys.epoch_key(e, name))[0], key_words(keys.coin_key(e, name))[0]) for e in names]
        )

    @classmethod
    def of_keys(cls, marking: Marking, trials: Sequence[tuple[str, bytes, bytes]]) -> NativeDetector:
        """A detector for keys opened from a key set: (name, key, coin key) of each trial, 16 bytes a key.

        Raises:
            ValueError: a key of another length.
        """
        detector = object.__new__(cls)
        detector.marking = marking
        detector._settle([_Trial(name, key_words(key)[0], key_words(coin)[0]) for name, key, coin in trials])
        return detector

    def _settle(self, trials: Sequence[_Trial]) -> None:
        self.scheme: str = self.marking.scheme
        self.marks: Scheme = scheme_for(self.marking)
        self._below = coin_threshold(self.marking.account_share)
        self._trials = tuple(trials)
        self.trials: Sequence[str | None] = tuple(t.name for t in trials)

    def read(self, ids_T: U32, first: int) -> Reading:
        """Positions ≥ max(first, context width); ids before `first` are context only."""
        k = self.marking.context_width
        ids = np.ascontiguousarray(ids_T, np.uint32)
        start = max(first, k)
        positions = np.arange(start, max(len(ids), start), dtype=np.int64)
        if not len(positions):
            return Reading(np.empty(0, np.uint64), positions, np.empty((0, k), np.uint32), np.empty(0, np.uint32))
        windows = np.empty((len(positions), k), np.uint32)
        for at in range(k):  # numpy's sliding window costs many times this where texts are short
            windows[:, at] = ids[start - k + at : len(ids) - k + at]
        return Reading(identities(ids, start, k), positions, windows, ids[start:])

    def account_positions(self, reading: Reading, trial: int) -> NDArray[np.bool_]:
        """Which positions (N,) the coin of this epoch gives to account keys."""
        if not self._below:
            return np.zeros(len(reading.tokens), bool)
        coins = context_hashes(self._trials[trial].coin, reading.windows)
        return np.asarray((coins >> np.uint64(64 - _COIN_BITS)) < self._below)

    def scores(self, reading: Reading, trial: int) -> Scores:
        """Scores under the epoch's key; positions of the account layer score 0 and do not count."""
        counted = ~self.account_positions(reading, trial)
        values = np.zeros(len(reading.tokens))
        hashes = context_hashes(self._trials[trial].key, reading.windows[counted])
        values[counted] = self.marks.scores(hashes, reading.tokens[counted])
        return Scores(values, counted)

    def totals_batch(
        self, ids_T: U32, offsets_D1: NDArray[np.int64], trial: int, firsts_D: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], F64]:
        """(n scored (D,), total (D,)) of many documents under one epoch, each deduplicated for itself.

        ids_T: the documents' ids one after another; document d is ids_T[offsets_D1[d] : offsets_D1[d + 1]].
        firsts_D: the first position of each document that may be scored; 0 by default. Needs 12 bytes a token.
        """
        firsts = np.zeros(len(offsets_D1) - 1, np.int64) if firsts_D is None else np.asarray(firsts_D, np.int64)
        ids, offsets = np.ascontiguousarray(ids_T, np.uint32), np.asarray(offsets_D1, np.int64)
        one = self._trials[trial]
        k = self.marking.context_width
        hashes, tokens, ends_D = unique_hashes(ids, offsets, firsts, k, one.coin, self._below, one.key)
        return np.diff(ends_D, prepend=0), self.marks.sums(hashes, tokens, ends_D)

    def account_totals(self, reading: Reading, trial: int, keys: bytes) -> tuple[int, F64]:
        """(n, sums (K,)) of the account layer of a deduplicated reading under K account keys of 16 bytes each."""
        theirs = reading.take(self.account_positions(reading, trial))
        return len(theirs.tokens), self.marks.totals(key_words(keys), theirs.windows, theirs.tokens)

    def decoy_totals(self, reading: Reading, trial: int, seed: bytes, count: int) -> tuple[int, F64]:
        """(n, sums (count,)) of a deduplicated reading under decoys of this epoch's key, true coin."""
        ours = reading.take(~self.account_positions(reading, trial))
        keys = key_words(self._decoys(seed, trial, count))
        return len(ours.tokens), self.marks.totals(keys, ours.windows, ours.tokens)

    def decoys(self, seed: bytes, count: int) -> Sequence[NativeDetector]:
        """Detectors with a decoy for each epoch's key. They keep the true coins: valid given the partition."""
        keys_EK = [key_words(self._decoys(seed, trial, count)) for trial in range(len(self._trials))]
        return _Decoys(self, keys_EK)

    def with_keys(self, keys_E: Sequence[U64]) -> NativeDetector:
        """The same detector with other epoch keys (two words each), coins unchanged."""
        other = object.__new__(NativeDetector)
        other.marking = self.marking
        other._settle([replace(t, key=key) for t, key in zip(self._trials, keys_E, strict=True)])
        return other

    def log10_tail(self, n: int, total: float) -> float:
        return self.marks.log10_tail(n, total)

    def fewest(self, log10_level: float) -> int:
        return self.marks.fewest(log10_level)

    def _decoys(self, seed: bytes, trial: int, count: int) -> bytes:
        keys = decoy_keys(seed, f"epoch/{self.scheme}/{self._trials[trial].name}", count)
        assert len(keys) == KEY_BYTES * count
        return keys


class _Decoys(Sequence[NativeDetector]):
    """Built as they are asked for."""

    def __init__(self, detector: NativeDetector, keys_EK: Sequence[U64]) -> None:
        self._detector, self._keys_EK = detector, keys_EK

    def __len__(self) -> int:
        return len(self._keys_EK[0])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._detector.with_keys([keys_K[index] for keys_K in self._keys_EK])
