"""From token ids to what is scored: the identity of a position, for deduplication, and a kernel for many documents."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64

from spiritsafe.watermark._prf import LANES, U32, U64, Word, context_hash, hash_contexts, message_words

__all__ = ["coin_is_account", "identities", "unique_hashes"]

_SMALL = 1 << 21  # three ids below this fit 63 bits, so up to width 2 the identity is exact
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@njit(inline="always")
def _identity(ids_W: U32) -> Word:
    """What names a (context, token) pair: its ids packed, or for large ids and wide contexts an unkeyed hash.

    The top bit tells the two apart. A collision of hashes loses a score, whatever the key: it cannot create evidence.
    """
    width = ids_W.shape[0]
    if width <= 3:
        packed = uint64(0)
        small = True
        for j in range(width):
            small = small and ids_W[j] < _SMALL
            packed = (packed << uint64(21)) | uint64(ids_W[j])
        if small:
            return packed
    hashed = context_hash(uint64(0), uint64(0), ids_W) | uint64(1 << 63)
    return hashed if hashed != _EMPTY else uint64(1 << 63)


@njit(cache=True, nogil=True)
def identities(ids_T: U32, start: int, k: int) -> U64:
    """Identity of each position from `start` ≥ k on, scored token included."""
    out = np.empty(max(ids_T.shape[0] - start, 0), np.uint64)
    for n in range(out.shape[0]):
        out[n] = _identity(ids_T[start + n - k : start + n + 1])
    return out


@njit(inline="always")
def coin_is_account(h: Word, below: Word) -> Any:
    """Whether a coin's hash gives a context to the account's key: its top 53 bits, as a number, are below `below`."""
    return (h >> uint64(11)) < below


@njit(cache=True, nogil=True)
def unique_hashes(
    ids_T: U32, offsets_D1: Any, firsts_D: Any, k: int, coin_2: U64, below: Word, key_2: U64
) -> tuple[U64, U32, Any]:
    """Context hashes under `key_2` and tokens of what the epoch key speaks for, each pair once a document.

    ids_T: all documents, one after another; document d is ids_T[offsets_D1[d] : offsets_D1[d + 1]].
    firsts_D: the first position of each document that may be scored.  below: account share · 2^53; 0 for no coin.
    Returns hashes (N,), tokens (N,), and where each document ends among them (D,).
    """
    docs = offsets_D1.shape[0] - 1
    hashes, tokens = np.empty(ids_T.shape[0], np.uint64), np.empty(ids_T.shape[0], np.uint32)
    ends = np.empty(docs, np.int64)
    longest = 1
    for d in range(docs):
        longest = max(longest, offsets_D1[d + 1] - offsets_D1[d])
    bits = 1
    while (1 << bits) < 2 * longest:
        bits += 1
    table = np.empty(1 << bits, np.uint64)
    windows, pending = np.empty((LANES, k), np.uint32), np.empty(LANES, np.uint32)
    state, coins, keyed = np.empty((4, LANES), np.uint64), np.empty(LANES, np.uint64), np.empty(LANES, np.uint64)
    count = 0
    for d in range(docs):
        begin, end = offsets_D1[d], offsets_D1[d + 1]
        bits = 1
        while (1 << bits) < 2 * (end - begin):
            bits += 1
        slots, mask, shift = table[: 1 << bits], (1 << bits) - 1, uint64(64 - bits)
        slots[:] = _EMPTY
        waiting = 0
        for t in range(begin + max(firsts_D[d], k), end + 1):
            if t < end:
                pair = _identity(ids_T[t - k : t + 1])
                slot = np.int64((pair * _SPREAD) >> shift)
                while slots[slot] != pair and slots[slot] != _EMPTY:
                    slot = (slot + 1) & mask
                if slots[slot] == pair:
                    continue
                slots[slot] = pair
                for j in range(k):
                    windows[waiting, j] = ids_T[t - k + j]
                pending[waiting] = ids_T[t]
                waiting += 1
            if waiting == LANES or t == end:
                words = message_words(windows[:waiting])
                hash_contexts(key_2[0], key_2[1], words, state, keyed[:waiting])
                if below > 0:
                    hash_contexts(coin_2[0], coin_2[1], words, state, coins[:waiting])
                for i in range(waiting):
                    if below == 0 or not coin_is_account(coins[i], below):
                        hashes[count], tokens[count] = keyed[i], pending[i]
                        count += 1
                waiting = 0
        ends[d] = count
    return hashes[:count], tokens[:count], ends
