"""Which PRF inputs occur for the first time: exact sets of 64-bit integers, for one document and for a whole corpus.

Both are open addressing with linear probing. An input is first put through a bijection of the 64-bit integers, so that
structured inputs spread and nothing is lost: equal slots mean equal inputs.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from spiritsafe.watermark._prf import U64, Word

__all__ = ["DocumentSeen", "Seen"]

Mask = NDArray[np.bool_]

_EMPTY = np.uint64(0)
_PARTITION_BITS = 8
_FIRST_SLOTS = 1 << 10
_SPLIT_ABOVE = 1 << 20  # inputs from which on the set is partitioned: below that, one table fits a cache
_MAX_LOAD = 0.75
_GROWTH = 1.5  # after growing a table is half full: 16 bytes an input at worst


class DocumentSeen:
    """First occurrences within one document; the table is reused from document to document."""

    def __init__(self) -> None:
        self._table: U64 = np.zeros(_FIRST_SLOTS, np.uint64)

    def first(self, inputs_N: U64) -> Mask:
        """True (N,) where an input had not occurred earlier in `inputs_N`."""
        need = int(len(inputs_N) / _MAX_LOAD) + 1
        if len(self._table) < need:
            self._table = np.zeros(1 << need.bit_length(), np.uint64)
        mask: Mask = _first_within(self._table[: 1 << need.bit_length()], inputs_N)
        return mask


class Seen:
    """The set of all inputs given so far, across documents.

    One small table at first, then 256 of them by the top bits of an input. Each grows by itself, so that the copy made
    while growing is a 256th of the whole: 100 million inputs take 1.1 to 1.6 GB, growing included.
    """

    def __init__(self) -> None:
        self._tables: list[U64] = [np.zeros(_FIRST_SLOTS, np.uint64)]
        self._counts: NDArray[np.int64] = np.zeros(1, np.int64)
        self._has_zero = np.zeros(1, np.bool_)  # the one input whose image is the mark of an empty slot

    def __len__(self) -> int:
        return int(self._counts.sum()) + int(self._has_zero[0])

    @property
    def nbytes(self) -> int:
        """Bytes its tables take now."""
        return sum(table.nbytes for table in self._tables)

    @property
    def growing_nbytes(self) -> int:
        """Bytes that growing the largest table would take for a moment, beyond `nbytes`."""
        return int(max(table.nbytes for table in self._tables) * _GROWTH)

    def add(self, inputs_N: U64) -> Mask:
        """Add them; True (N,) for those that are new, each input once."""
        mask: Mask = np.zeros(len(inputs_N), np.bool_)
        if len(self._tables) == 1 and self._counts[0] + len(inputs_N) > _SPLIT_ABOVE:
            self._split()
        if len(self._tables) == 1:
            self._add_part(0, _spread_all(inputs_N), mask, np.arange(len(inputs_N)))
            return mask
        spread_N, order_N, starts = _by_partition(inputs_N)
        for part in np.flatnonzero(np.diff(starts)):
            begin, end = starts[part], starts[part + 1]
            self._add_part(int(part), spread_N[begin:end], mask, order_N[begin:end])
        return mask

    def _add_part(self, part: int, spread_N: U64, mask: Mask, order_N: NDArray[np.int64]) -> None:
        done = 0
        while True:
            table = self._tables[part]
            room = int(len(table) * _MAX_LOAD)
            done, self._counts[part] = _insert(
                table, self._counts[part], room, spread_N, done, mask, order_N, self._has_zero
            )
            if done == len(spread_N):
                return
            self._tables[part] = _grown(table, int(len(table) * _GROWTH) + 1)

    def _split(self) -> None:
        (old,) = self._tables
        kept = old[old != _EMPTY]
        parts = (kept >> np.uint64(64 - _PARTITION_BITS)).astype(np.int64)
        counts = np.bincount(parts, minlength=1 << _PARTITION_BITS).astype(np.int64)
        size = int(_SPLIT_ABOVE / (1 << _PARTITION_BITS) / _MAX_LOAD)
        self._tables = [
            _grown(kept[parts == part], max(size, int(counts[part] / _MAX_LOAD) + 2)) for part in range(len(counts))
        ]
        self._counts = counts


@njit(inline="always")
def _spread(x: Word) -> Word:
    """A bijection of the 64-bit integers (Stafford's mix 13) that sends nearby inputs far apart."""
    z = uint64(x) + uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    return z ^ (z >> uint64(31))


@njit(inline="always")
def _slot(z: Word, size: int) -> Word:
    """A slot in 0 … size−1 (size < 2^32) from the low 32 bits: the top ones are equal within a partition."""
    return uint64(((z & uint64(0xFFFFFFFF)) * size) >> uint64(32))


@njit(inline="always")
def _next(slot: int, size: int) -> int:
    slot += uint64(1)
    return slot if slot < size else uint64(0)


@njit(cache=True, nogil=True)
def _first_within(table: U64, inputs_N: U64) -> Mask:
    mask = np.zeros(inputs_N.shape[0], np.bool_)
    wrap = uint64(table.shape[0] - 1)
    table[:] = uint64(0)
    zero = False
    for n in range(inputs_N.shape[0]):
        z = _spread(inputs_N[n])
        if z == uint64(0):
            mask[n] = not zero
            zero = True
            continue
        slot = z & wrap
        while table[slot] != uint64(0) and table[slot] != z:
            slot = (slot + uint64(1)) & wrap
        if table[slot] == uint64(0):
            table[slot] = z
            mask[n] = True
    return mask


@njit(cache=True, nogil=True)
def _spread_all(inputs_N: U64) -> U64:
    out = np.empty(inputs_N.shape[0], np.uint64)
    for n in range(inputs_N.shape[0]):
        out[n] = _spread(inputs_N[n])
    return out


@njit(cache=True, nogil=True)
def _by_partition(inputs_N: U64) -> tuple[U64, NDArray[np.int64], NDArray[np.int64]]:
    """Spread inputs sorted by partition, stably; where each came from; and where each partition starts."""
    count = inputs_N.shape[0]
    shift = uint64(64 - _PARTITION_BITS)
    starts = np.zeros((1 << _PARTITION_BITS) + 1, np.int64)
    spread_N = _spread_all(inputs_N)
    for n in range(count):
        starts[int(spread_N[n] >> shift) + 1] += 1
    for part in range(1 << _PARTITION_BITS):
        starts[part + 1] += starts[part]
    place = starts.copy()
    sorted_N = np.empty(count, np.uint64)
    order_N = np.empty(count, np.int64)
    for n in range(count):
        part = int(spread_N[n] >> shift)
        sorted_N[place[part]] = spread_N[n]
        order_N[place[part]] = n
        place[part] += 1
    return sorted_N, order_N, starts


@njit(cache=True, nogil=True)
def _insert(
    table: U64,
    held: int,
    room: int,
    spread_N: U64,
    begin: int,
    mask: Mask,
    order_N: NDArray[np.int64],
    has_zero: Mask,
) -> tuple[int, int]:
    """Insert from `begin` on until all are in or the table is full; (how far, how many the table holds)."""
    size = uint64(table.shape[0])
    for n in range(begin, spread_N.shape[0]):
        z = spread_N[n]
        if z == uint64(0):
            mask[order_N[n]] = not has_zero[0]
            has_zero[0] = True
            continue
        if held >= room:
            return n, held
        slot = _slot(z, size)
        while table[slot] != uint64(0) and table[slot] != z:
            slot = _next(slot, size)
        if table[slot] == uint64(0):
            table[slot] = z
            held += 1
            mask[order_N[n]] = True
    return spread_N.shape[0], held


@njit(cache=True, nogil=True)
def _grown(entries: U64, size: int) -> U64:
    """A table of `size` slots with all non-empty entries."""
    table = np.zeros(size, np.uint64)
    for entry in entries:
        if entry != uint64(0):
            slot = _slot(entry, uint64(size))
            while table[slot] != uint64(0):
                slot = _next(slot, uint64(size))
            table[slot] = entry
    return table
