"""MurmurHash3 x86-32 over 32-bit words, as SGLang hashes contexts, keys and tokens; kernels for documents.

Source: Appleby, MurmurHash3 (public domain), x86_32: the body for whole words, and the finaliser.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint32, uint64
from numpy.typing import NDArray

from spiritsafe.watermark._prf import U32, U64
from spiritsafe.watermark._types import F64

__all__ = ["coin_state", "coins", "document_totals", "hashes", "key_states", "read", "scores", "totals"]

_STEP = 2.0**-32
_FACTORS = 30  # of at least 2^-32 each: their product is at least 2^-960, a normal double


@njit(inline="always")
def _word(word: Any) -> Any:
    """What a word is before it meets the state."""
    k = uint32(uint32(word) * uint32(0xCC9E2D51))
    k = uint32((k << uint32(15)) | (k >> uint32(17)))
    return uint32(k * uint32(0x1B873593))


@njit(inline="always")
def _add(state: Any, word: Any) -> Any:
    h = uint32(uint32(state) ^ uint32(word))
    h = uint32((h << uint32(13)) | (h >> uint32(19)))
    return uint32(uint32(h * uint32(5)) + uint32(0xE6546B64))


@njit(inline="always")
def _finish(state: Any, words: Any) -> Any:
    h = uint32(uint32(state) ^ uint32(4 * words))
    h = uint32(uint32(h ^ (h >> uint32(16))) * uint32(0x85EBCA6B))
    h = uint32(uint32(h ^ (h >> uint32(13))) * uint32(0xC2B2AE35))
    return uint32(h ^ (h >> uint32(16)))


@njit(inline="always")
def _add_key(state: Any, key: Any) -> Any:
    """A 64-bit key, low word first."""
    low = _add(state, _word(uint32(uint64(key) & uint64(0xFFFFFFFF))))
    return _add(low, _word(uint32(uint64(key) >> uint64(32))))


@njit(inline="always")
def _hash(state: Any, context: Any, token: Any) -> Any:
    return _finish(_add(_add(state, _word(context)), _word(token)), 4)


@njit(inline="always")
def _above(h: Any) -> float:
    """1 − h / 2^32, exactly: one minus u rounded down to its step."""
    return float(uint64(0x100000000) - uint64(h)) * _STEP


@njit(cache=True, nogil=True)
def key_states(keys_N: U64) -> U32:
    """The states (N,) that 64-bit keys leave: all that later hashes keep of them."""
    out = np.empty(keys_N.shape[0], np.uint32)
    for n in range(keys_N.shape[0]):
        out[n] = _add_key(uint32(0), keys_N[n])
    return out


@njit(cache=True, nogil=True)
def coin_state(key_a: Any, key_b: Any) -> Any:
    """The state that two 64-bit keys leave for their coins."""
    return _add_key(_add_key(uint32(0), key_a), key_b)


@njit(cache=True, nogil=True)
def coins(state: Any, contexts_N: U32) -> U32:
    """The coins (N,) after contexts with these hashes, from the state of two keys."""
    out = np.empty(contexts_N.shape[0], np.uint32)
    for n in range(contexts_N.shape[0]):
        out[n] = _finish(_add(state, _word(contexts_N[n])), 5)
    return out


@njit(cache=True, nogil=True)
def hashes(states_N: U32, contexts_N: U32, tokens_N: U32) -> U32:
    """What the uniforms are made of (N,), from key states, context hashes and tokens."""
    out = np.empty(contexts_N.shape[0], np.uint32)
    for n in range(contexts_N.shape[0]):
        out[n] = _hash(states_N[n], contexts_N[n], tokens_N[n])
    return out


@njit(cache=True, nogil=True)
def scores(states_M: U32, speakers_N: NDArray[np.uint8], contexts_N: U32, tokens_N: U32) -> F64:
    """−ln(1 − h / 2^32) (N,), each under the key that speaks."""
    out = np.empty(contexts_N.shape[0], np.float64)
    for n in range(contexts_N.shape[0]):
        out[n] = 0.0 - np.log(_above(_hash(states_M[speakers_N[n]], contexts_N[n], tokens_N[n])))
    return out


@njit(cache=True, nogil=True)
def totals(states_KM: U32, speakers_N: NDArray[np.uint8], contexts_N: U32, tokens_N: U32) -> F64:
    """Sums of the scores (K,) under K sets of keys; one logarithm for 30 tokens."""
    count = contexts_N.shape[0]
    contexts = np.empty(count, np.uint32)
    tokens = np.empty(count, np.uint32)
    for n in range(count):
        contexts[n], tokens[n] = _word(contexts_N[n]), _word(tokens_N[n])
    out = np.empty(states_KM.shape[0], np.float64)
    for k in range(states_KM.shape[0]):
        total = 0.0
        for begin in range(0, count, _FACTORS):
            product = 1.0
            for n in range(begin, min(begin + _FACTORS, count)):
                product *= _above(_finish(_add(_add(states_KM[k, speakers_N[n]], contexts[n]), tokens[n]), 4))
            total -= np.log(product)
        out[k] = total
    return out


@njit(cache=True, nogil=True)
def read(ids_T: U32, start: int, width: int, most: int) -> tuple[U64, NDArray[np.int64], U32, U32]:
    """Inputs, positions, context hashes (N, 1) and tokens from `start` ≥ 1 on.

    Each context hash counts once and `most` of them at all; with `most` 0 every position is read. A context is `width`
    tokens or, nearer to the beginning, what there is.
    """
    length = ids_T.shape[0]
    words = np.empty(length, np.uint32)
    for t in range(length):
        words[t] = _word(ids_T[t])
    room = max(0, length - start)
    if most > 0:
        room = min(room, most)
    slots = 16
    while slots < 2 * room and most > 0:
        slots *= 2
    table = np.zeros(slots, np.uint32)
    taken = np.zeros(slots, np.bool_)
    wrap = uint32(slots - 1)
    inputs = np.empty(room, np.uint64)
    positions = np.empty(room, np.int64)
    contexts = np.empty((room, 1), np.uint32)
    tokens = np.empty(room, np.uint32)
    count = 0
    for t in range(start, length):
        if count == room:
            break
        begin = max(0, t - width)
        state = uint32(0)
        for j in range(begin, t):
            state = _add(state, words[j])
        h = _finish(state, t - begin)
        if most > 0:
            slot = h & wrap
            while taken[slot] and table[slot] != h:
                slot = uint32(slot + uint32(1)) & wrap
            if taken[slot]:
                continue
            taken[slot] = True
            table[slot] = h
        inputs[count] = (uint64(h) << uint64(32)) | uint64(ids_T[t])
        positions[count] = t
        contexts[count, 0] = h
        tokens[count] = ids_T[t]
        count += 1
    return inputs[:count], positions[:count], contexts[:count], tokens[:count]


@njit(cache=True, nogil=True)
def document_totals(
    ids_T: U32,
    offsets_D1: NDArray[np.int64],
    firsts_D: NDArray[np.int64],
    width: int,
    most: int,
    states_M: U32,
    coin: Any,
    below: int,
    tested: int,
) -> tuple[NDArray[np.int64], F64]:
    """(n, sum of scores) (D,) of documents that stand one after another: read, deduplicated and scored in one pass.

    firsts_D: where reading starts in each; 0 for after `width` tokens.  most: as for `read`, but with 0 each (context,
    token) pair counts once.  coin, below: key 0 speaks where the coin is below, else key 1; −1 for one key.
    tested: the key whose positions count; −1 for all.
    """
    documents = offsets_D1.shape[0] - 1
    longest = 0
    for d in range(documents):
        longest = max(longest, offsets_D1[d + 1] - offsets_D1[d])
    slots = 16
    while slots < 2 * (min(longest, most) if most > 0 else longest):
        slots *= 2
    wrap = uint64(slots - 1)
    table = np.empty(slots, np.uint64)
    owner = np.zeros(slots, np.int64)  # which document wrote a slot, counted from 1: the table is never cleared
    words = np.empty(longest, np.uint32)
    counts = np.zeros(documents, np.int64)
    sums = np.zeros(documents, np.float64)
    for d in range(documents):
        begin = offsets_D1[d]
        length = offsets_D1[d + 1] - begin
        for t in range(length):
            words[t] = _word(ids_T[begin + t])
        start = firsts_D[d] if firsts_D[d] > 0 else width
        seen = 0
        factors = 0
        product = 1.0
        for t in range(start, length):
            if most > 0 and seen == most:
                break
            left = max(0, t - width)
            state = uint32(0)
            for j in range(left, t):
                state = _add(state, words[j])
            h = _finish(state, t - left)
            key = uint64(h)
            if most == 0:
                key = (key << uint64(32)) | uint64(ids_T[begin + t])
            slot = (key * uint64(0x9E3779B97F4A7C15) >> uint64(32)) & wrap
            while owner[slot] == d + 1 and table[slot] != key:
                slot = (slot + uint64(1)) & wrap
            if owner[slot] == d + 1:
                continue
            owner[slot] = d + 1
            table[slot] = key
            seen += 1
            speaker = 0
            if below >= 0 and int(_finish(_add(coin, _word(h)), 5)) >= below:
                speaker = 1
            if tested >= 0 and speaker != tested:
                continue
            product *= _above(_finish(_add(_add(states_M[speaker], _word(h)), words[t]), 4))
            counts[d] += 1
            factors += 1
            if factors == _FACTORS:
                sums[d] -= np.log(product)
                factors = 0
                product = 1.0
        sums[d] -= np.log(product)
    return counts, sums
