"""The keyed function behind Spiritsafe's own marks, version 1.

A context of k tokens is hashed once: h = SipHash-2-4(key, the tokens as little-endian uint32) with a 128-bit key. Token x
then has the value z = mix(h + (x + 1)·φ mod 2^64), the splitmix64 stream that starts at h. Its uniform is
u = (⌊z / 2^11⌋ + ½) / 2^53, strictly inside (0, 1).

Everything runs in numba on the CPU; `_prf_torch` gives the same bits on any torch device. Sources: Aumasson and
Bernstein, "SipHash" (2012), §2; Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), with
Stafford's mix 13.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

__all__ = ["PRF_VERSION", "U32", "U64", "context_hash", "context_hashes", "key_words", "mix", "uniform", "values"]

PRF_VERSION = 1
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

_PHI = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_UNIT = 2.0**-53


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
def _rotl(x: int, b: int) -> int:
    return uint64((x << uint64(b)) | (x >> uint64(64 - b)))


@njit(inline="always")
def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
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
def context_hash(k0: int, k1: int, window_k: U32) -> int:
    """SipHash-2-4 of k uint32 tokens under the key (k0, k1); callable from numba."""
    v0 = k0 ^ uint64(0x736F6D6570736575)
    v1 = k1 ^ uint64(0x646F72616E646F6D)
    v2 = k0 ^ uint64(0x6C7967656E657261)
    v3 = k1 ^ uint64(0x7465646279746573)
    k = window_k.shape[0]
    for j in range(k // 2):
        m = uint64(window_k[2 * j]) | (uint64(window_k[2 * j + 1]) << uint64(32))
        v3 ^= m
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= m
    m = uint64(4 * k) << uint64(56)
    if k % 2:
        m |= uint64(window_k[k - 1])
    v3 ^= m
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0 ^= m
    v2 ^= uint64(0xFF)
    for _ in range(4):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


@njit(inline="always")
def mix(h: int, token: int) -> int:
    """The value z of `token` after a context with hash h; callable from numba."""
    z = h + (uint64(token) + uint64(1)) * _PHI
    z = (z ^ (z >> uint64(30))) * _MIX1
    z = (z ^ (z >> uint64(27))) * _MIX2
    return z ^ (z >> uint64(31))


@njit(inline="always")
def uniform(z: int) -> float:
    """z as a uniform in (0, 1); callable from numba."""
    return (float(z >> uint64(11)) + 0.5) * _UNIT


@njit(cache=True)
def context_hashes(key_2: U64, windows_Nk: U32) -> U64:
    """Hashes (N,) of N contexts under one key of two words."""
    out = np.empty(windows_Nk.shape[0], np.uint64)
    for n in range(windows_Nk.shape[0]):
        out[n] = context_hash(key_2[0], key_2[1], windows_Nk[n])
    return out


@njit(cache=True)
def values(key_2: U64, windows_Nk: U32, tokens_N: U32) -> U64:
    """PRF values z (N,) of N (context, token) pairs under one key of two words."""
    out = np.empty(windows_Nk.shape[0], np.uint64)
    for n in range(windows_Nk.shape[0]):
        out[n] = mix(context_hash(key_2[0], key_2[1], windows_Nk[n]), tokens_N[n])
    return out
