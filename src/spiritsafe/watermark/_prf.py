"""The keyed function behind Spiritsafe's own marks, version 1.

A context of k tokens is hashed once: h = SipHash-2-4(key, the tokens as little-endian uint32) with a 128-bit key.
Token x then has the value z = mix(h + (x + 1)·φ mod 2^64), the splitmix64 stream that starts at h. Its uniform is
u = (⌊z / 2^12⌋ + ½) / 2^52, strictly inside (0, 1) and, like 1 - u, exact in a double.

This is numba for the CPU; `_prf_numpy` and `_prf_torch` (any device) give the same bits. The block functions keep state
in arrays, one lane a context or a key, so that LLVM turns their inner loops into SIMD. Sources: Aumasson and
Bernstein, "SipHash" (2012), §2; Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), with
Stafford's mix 13.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

__all__ = [
    "LANES",
    "PRF_VERSION",
    "U32",
    "U64",
    "Word",
    "context_hash",
    "context_hashes",
    "hash_contexts",
    "hash_keys",
    "key_words",
    "message_words",
    "mix",
    "uniform",
    "values",
]

PRF_VERSION = 1
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
Word = Any  # a uint64 inside numba

_PHI = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_UNIT = 2.0**-52
LANES = 256  # five arrays of 8-byte state fit the L1 cache beside the data


def key_words(keys: bytes | NDArray[np.uint8]) -> U64:
    """Keys of 16 bytes each as (K, 2) little-endian words.

    Raises:
        ValueError: the length is not a multiple of 16.
    """
    raw = bytes(keys)
    if len(raw) % 16:
        raise ValueError(f"keys are 16 bytes each; got {len(raw)} bytes")
    return np.frombuffer(raw, dtype="<u8").reshape(-1, 2).astype(np.uint64)


@njit(inline="always")
def _rotl(x: Word, b: int) -> Word:
    return uint64((x << uint64(b)) | (x >> uint64(64 - b)))


@njit(inline="always")
def _round(v0: Word, v1: Word, v2: Word, v3: Word) -> tuple[Word, Word, Word, Word]:
    v0 += v1
    v1 = _rotl(v1, 13) ^ v0
    v0 = _rotl(v0, 32)
    v2 += v3
    v3 = _rotl(v3, 16) ^ v2
    v0 += v3
    v3 = _rotl(v3, 21) ^ v0
    v2 += v1
    v1 = _rotl(v1, 17) ^ v2
    v2 = _rotl(v2, 32)
    return v0, v1, v2, v3


@njit(inline="always")
def _start(k0: Word, k1: Word) -> tuple[Word, Word, Word, Word]:
    return (
        k0 ^ uint64(0x736F6D6570736575),
        k1 ^ uint64(0x646F72616E646F6D),
        k0 ^ uint64(0x6C7967656E657261),
        k1 ^ uint64(0x7465646279746573),
    )


@njit(inline="always")
def _absorb(v0: Word, v1: Word, v2: Word, v3: Word, m: Word) -> tuple[Word, Word, Word, Word]:
    v0, v1, v2, v3 = _round(v0, v1, v2, v3 ^ m)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ m, v1, v2, v3


@njit(inline="always")
def _finish(v0: Word, v1: Word, v2: Word, v3: Word) -> Word:
    v0, v1, v2, v3 = _round(v0, v1, v2 ^ uint64(0xFF), v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


@njit(inline="always")
def context_hash(k0: Word, k1: Word, window_k: U32) -> Word:
    """SipHash-2-4 of k uint32 tokens under the key (k0, k1); callable from numba."""
    v0, v1, v2, v3 = _start(k0, k1)
    k = window_k.shape[0]
    for j in range(k // 2):
        m = uint64(window_k[2 * j]) | (uint64(window_k[2 * j + 1]) << uint64(32))
        v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, m)
    m = uint64(4 * k) << uint64(56)
    if k % 2:
        m |= uint64(window_k[k - 1])
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, m)
    return _finish(v0, v1, v2, v3)


@njit(inline="always")
def mix(h: Word, token: Word) -> Word:
    """The value z of `token` after a context with hash h; callable from numba."""
    z = h + (uint64(token) + uint64(1)) * _PHI
    z = (z ^ (z >> uint64(30))) * _MIX1
    z = (z ^ (z >> uint64(27))) * _MIX2
    return z ^ (z >> uint64(31))


@njit(inline="always")
def uniform(z: Word) -> float:
    """z as a uniform in (0, 1); callable from numba."""
    return (np.float64(np.int64(z >> uint64(12))) + 0.5) * _UNIT  # signed: the conversion SIMD has


@njit(cache=True)
def message_words(windows_Nk: U32) -> U64:
    """SipHash's message words (W, N) of N contexts of k tokens, the length in the last; W = k // 2 + 1."""
    count, k = windows_Nk.shape
    words = np.empty((k // 2 + 1, count), np.uint64)
    for n in range(count):
        for j in range(k // 2):
            words[j, n] = uint64(windows_Nk[n, 2 * j]) | (uint64(windows_Nk[n, 2 * j + 1]) << uint64(32))
        last = uint64(4 * k) << uint64(56)
        if k % 2:
            last |= uint64(windows_Nk[n, k - 1])
        words[k // 2, n] = last
    return words


@njit(cache=True)
def hash_contexts(k0: Word, k1: Word, words_WN: U64, state_4L: U64, out_N: U64) -> None:
    """Hashes of N ≤ LANES contexts under one key, into `out_N`; `state_4L` is scratch. Callable from numba."""
    v0, v1, v2, v3 = state_4L[0], state_4L[1], state_4L[2], state_4L[3]
    count = out_N.shape[0]
    a, b, c, d = _start(k0, k1)
    for i in range(count):
        v0[i], v1[i], v2[i], v3[i] = a, b, c, d
    for w in range(words_WN.shape[0]):
        m = words_WN[w]
        for i in range(count):
            v0[i], v1[i], v2[i], v3[i] = _absorb(v0[i], v1[i], v2[i], v3[i], m[i])
    for i in range(count):
        out_N[i] = _finish(v0[i], v1[i], v2[i], v3[i])


@njit(cache=True)
def hash_keys(keys_2K: U64, words_W: U64, state_4L: U64, out_K: U64) -> None:
    """Hashes of one context under K ≤ LANES keys, into `out_K`; `state_4L` is scratch. Callable from numba."""
    k0, k1 = keys_2K[0], keys_2K[1]
    v0, v1, v2, v3 = state_4L[0], state_4L[1], state_4L[2], state_4L[3]
    count = out_K.shape[0]
    for i in range(count):
        v0[i], v1[i], v2[i], v3[i] = _start(k0[i], k1[i])
    for w in range(words_W.shape[0]):
        m = words_W[w]
        for i in range(count):
            v0[i], v1[i], v2[i], v3[i] = _absorb(v0[i], v1[i], v2[i], v3[i], m)
    for i in range(count):
        out_K[i] = _finish(v0[i], v1[i], v2[i], v3[i])


@njit(cache=True, nogil=True)
def context_hashes(key_2: U64, windows_Nk: U32) -> U64:
    """Hashes (N,) of N contexts under one key of two words."""
    count = windows_Nk.shape[0]
    out = np.empty(count, np.uint64)
    state = np.empty((4, LANES), np.uint64)
    for low in range(0, count, LANES):
        high = min(low + LANES, count)
        hash_contexts(key_2[0], key_2[1], message_words(windows_Nk[low:high]), state, out[low:high])
    return out


@njit(cache=True, nogil=True)
def values(key_2: U64, windows_Nk: U32, tokens_N: U32) -> U64:
    """PRF values z (N,) of N (context, token) pairs under one key of two words."""
    out: U64 = context_hashes(key_2, windows_Nk)
    for n in range(out.shape[0]):
        out[n] = mix(out[n], tokens_N[n])
    return out
