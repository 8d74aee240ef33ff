"""vLLM's keyed function, philox4x32-10-v1, as its sampler and its detector compute it.

A context of k tokens is folded, four at a time, through Philox4x32-10 under a 64-bit key (two 32-bit words, low first).
A second Philox of ⌊token / 4⌋ under the folded state gives four 32-bit values, of which token mod 4 chooses one. Its
top 24 bits m give the uniform u = float32((m + 1) / (2^24 + 1)). Everything is done for blocks of positions in loops
without branches, which compilers turn into SIMD code.

Sources: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011), §3.3; vLLM 0.33.0,
v1/watermarking/prfs/philox.py, checked against vectors that its own code produced.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint32, uint64
from numpy.typing import NDArray

from spiritsafe.watermark._prf import U32
from spiritsafe.watermark._types import F64

__all__ = ["STEPS", "key_words", "scores", "totals", "uniforms"]

STEPS = 1 << 24  # values the uniform takes
_LANES = 512
_TERMS = 32  # 1 − u ≥ 2^-24: that many factors stay far above the smallest double
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_CONTEXT_DOMAIN, _TOKEN_DOMAIN = 0x574D4358, 0x574D544B


def key_words(key: int) -> U32:
    """A 64-bit key as its two words (2,), low first."""
    return np.array([key & 0xFFFFFFFF, key >> 32], np.uint32)


@njit(inline="always")
def _philox(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 of one counter under one key."""
    for _ in range(10):
        p0 = uint64(_M0) * uint64(c0)
        p1 = uint64(_M1) * uint64(c2)
        c0 = uint32(p1 >> uint64(32)) ^ c1 ^ k0
        c1 = uint32(p1)
        c2 = uint32(p0 >> uint64(32)) ^ c3 ^ k1
        c3 = uint32(p0)
        k0 = uint32(k0 + uint32(_W0))
        k1 = uint32(k1 + uint32(_W1))
    return c0, c1, c2, c3


@njit(cache=True, nogil=True)
def _lanes(
    key_2: U32, windows_Nk: U32, tokens_N: U32, begin: int, end: int, state_4L: U32, u_L: NDArray[np.float32]
) -> None:
    """The uniforms of positions begin … end−1, at most _LANES of them, into u_L."""
    width = windows_Nk.shape[1]
    count = end - begin
    s0, s1, s2, s3 = state_4L[0], state_4L[1], state_4L[2], state_4L[3]
    key0, key1 = key_2[0], key_2[1]
    s0[:count] = uint32(_CONTEXT_DOMAIN)
    s1[:count] = uint32(width)
    s2[:count] = uint32(0)
    s3[:count] = uint32(0)
    for offset in range(0, width, 4):
        left = width - offset
        k0 = uint32(key0 ^ uint32(offset))
        for i in range(count):
            w0 = windows_Nk[begin + i, offset]
            w1 = windows_Nk[begin + i, offset + 1] if left > 1 else uint32(0xFFFFFFFE)
            w2 = windows_Nk[begin + i, offset + 2] if left > 2 else uint32(0xFFFFFFFD)
            w3 = windows_Nk[begin + i, offset + 3] if left > 3 else uint32(0xFFFFFFFC)
            s0[i], s1[i], s2[i], s3[i] = _philox(s0[i] ^ w0, s1[i] ^ w1, s2[i] ^ w2, s3[i] ^ w3, k0, key1)
    k1 = uint32(key1 ^ uint32(_TOKEN_DOMAIN))
    for i in range(count):
        token = tokens_N[begin + i]
        v0, v1, v2, v3 = _philox(uint32(token >> uint32(2)), s0[i], s1[i], s2[i], uint32(key0 ^ s3[i]), k1)
        low = v1 if token & uint32(1) else v0
        high = v3 if token & uint32(1) else v2
        word = high if token & uint32(2) else low
        u_L[i] = np.float32((float(word >> uint32(8)) + 1.0) / (STEPS + 1.0))


@njit(cache=True, nogil=True)
def uniforms(key_2: U32, windows_Nk: U32, tokens_N: U32) -> NDArray[np.float32]:
    """u (N,) of N (context, token) pairs under one key of two words."""
    count = windows_Nk.shape[0]
    out = np.empty(count, np.float32)
    state_4L = np.empty((4, _LANES), np.uint32)
    for begin in range(0, count, _LANES):
        end = min(begin + _LANES, count)
        _lanes(key_2, windows_Nk, tokens_N, begin, end, state_4L, out[begin:end])
    return out


@njit(cache=True, nogil=True)
def scores(keys_M2: U32, weights_M: F64, windows_Nk: U32, tokens_N: U32) -> F64:
    """Σ_m weight_m · −ln(1 − u) (N,) of N pairs, u being the uniform under key m."""
    out = np.zeros(windows_Nk.shape[0])
    for m in range(keys_M2.shape[0]):
        u_N = uniforms(keys_M2[m], windows_Nk, tokens_N)
        for n in range(out.shape[0]):
            # 1 − u is exact in double precision, so this is log1p(−u).
            out[n] -= weights_M[m] * np.log(1.0 - float(u_N[n]))
    return out


@njit(cache=True, nogil=True)
def totals(keys_KM2: U32, weights_M: F64, windows_Nk: U32, tokens_N: U32) -> F64:
    """The sums (K,) of `scores` under each of K sets of M keys; one logarithm for 32 positions."""
    out = np.zeros(keys_KM2.shape[0])
    count = windows_Nk.shape[0]
    state_4L = np.empty((4, _LANES), np.uint32)
    u_L = np.empty(_LANES, np.float32)
    for k in range(keys_KM2.shape[0]):
        for m in range(keys_KM2.shape[1]):
            total = 0.0
            for begin in range(0, count, _LANES):
                end = min(begin + _LANES, count)
                _lanes(keys_KM2[k, m], windows_Nk, tokens_N, begin, end, state_4L, u_L)
                for i in range(0, end - begin, _TERMS):
                    product = 1.0
                    for j in range(i, min(i + _TERMS, end - begin)):
                        product *= 1.0 - float(u_L[j])
                    total -= np.log(product)
            out[k] += weights_M[m] * total
    return out
