"""The PRF in plain numpy: the reference that the compiled ones are held to, and what to port from."""

from __future__ import annotations

import numpy as np

from spiritsafe.watermark._prf import U32, U64
from spiritsafe.watermark._types import F64

__all__ = ["context_hashes", "uniforms", "values"]

_PHI = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_START = np.array([0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573], np.uint64)


def context_hashes(key_2: U64, windows_Nk: U32) -> U64:
    """SipHash-2-4 (N,) of N contexts of k tokens under one key of two words."""
    count, k = windows_Nk.shape
    tokens = windows_Nk.astype(np.uint64)
    words = [tokens[:, 2 * j] | (tokens[:, 2 * j + 1] << np.uint64(32)) for j in range(k // 2)]
    length = np.full(count, np.uint64((4 * k) & 0xFF) << np.uint64(56))
    words.append(length | tokens[:, k - 1] if k % 2 else length)
    v = [np.full(count, start ^ key_2[i % 2]) for i, start in enumerate(_START)]
    for m in words:
        v[3] = v[3] ^ m
        v = _round(_round(v))
        v[0] = v[0] ^ m
    v[2] = v[2] ^ np.uint64(0xFF)
    v = _round(_round(_round(_round(v))))
    hashes: U64 = v[0] ^ v[1] ^ v[2] ^ v[3]
    return hashes


def values(hashes_N: U64, tokens_N: U32) -> U64:
    """PRF values z (N,) of tokens after contexts with these hashes."""
    z = hashes_N + (tokens_N.astype(np.uint64) + np.uint64(1)) * _PHI
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    mixed: U64 = z ^ (z >> np.uint64(31))
    return mixed


def uniforms(z_N: U64) -> F64:
    """z (N,) as uniforms in (0, 1)."""
    return ((z_N >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _rotl(x: U64, bits: int) -> U64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


def _round(v: list[U64]) -> list[U64]:
    v0, v1, v2, v3 = v
    v0 = v0 + v1
    v1 = _rotl(v1, 13) ^ v0
    v0 = _rotl(v0, 32)
    v2 = v2 + v3
    v3 = _rotl(v3, 16) ^ v2
    v0 = v0 + v3
    v3 = _rotl(v3, 21) ^ v0
    v2 = v2 + v1
    v1 = _rotl(v1, 17) ^ v2
    v2 = _rotl(v2, 32)
    return [v0, v1, v2, v3]
