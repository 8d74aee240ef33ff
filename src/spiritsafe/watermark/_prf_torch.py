"""The PRF on any torch device, bit for bit: 64-bit words as int64, whose arithmetic wraps.

torch has no unsigned 64-bit arithmetic to speak of, and its >> copies the sign: every logical shift masks what came in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spiritsafe.watermark._prf import U64

__all__ = ["as_signed", "as_unsigned", "context_hashes", "token_values", "top_bits", "uniforms", "values"]


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_PHI = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)
_START = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


def as_signed(words: U64, device: Any = "cpu") -> torch.Tensor:
    """64-bit words as an int64 tensor of the same bits."""
    return torch.from_numpy(np.ascontiguousarray(words, np.uint64).view(np.int64)).to(device)


def as_unsigned(words: torch.Tensor) -> U64:
    """An int64 tensor as 64-bit words of the same bits."""
    return words.cpu().numpy().view(np.uint64)


def context_hashes(key_2: U64, windows_Nk: torch.Tensor) -> torch.Tensor:
    """SipHash-2-4 (N,) of N contexts of k tokens (int64, each below 2^32) under one key of two words."""
    k0, k1 = (int(word) for word in key_2)
    count, k = windows_Nk.shape
    zero = torch.zeros(count, dtype=torch.int64, device=windows_Nk.device)
    v = [zero + _signed(start ^ key) for start, key in zip(_START, (k0, k1, k0, k1), strict=True)]
    words = [windows_Nk[:, 2 * j] | (windows_Nk[:, 2 * j + 1] << 32) for j in range(k // 2)]
    length = zero + _signed(((4 * k) & 0xFF) << 56)
    for m in (*words, length | windows_Nk[:, k - 1] if k % 2 else length):
        v[3] = v[3] ^ m
        v = _round(_round(v))
        v[0] = v[0] ^ m
    v[2] = v[2] ^ 0xFF
    v = _round(_round(_round(_round(v))))
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def values(hashes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """PRF values z of tokens (int64) after contexts with these hashes; shapes broadcast."""
    z = hashes + (tokens + 1) * _PHI
    z = (z ^ _right(z, 30)) * _MIX1
    z = (z ^ _right(z, 27)) * _MIX2
    return z ^ _right(z, 31)


def token_values(hashes_B: torch.Tensor, vocab: int) -> torch.Tensor:
    """PRF values z (B, V) of every token of the vocabulary."""
    return values(hashes_B[:, None], torch.arange(vocab, device=hashes_B.device)[None])


def top_bits(z: torch.Tensor, count: int) -> torch.Tensor:
    """The top `count` ≤ 63 bits as non-negative integers."""
    return _right(z, 64 - count)


def uniforms(z: torch.Tensor) -> torch.Tensor:
    """z as float64 uniforms in (0, 1)."""
    return (top_bits(z, 52).double() + 0.5) * 2.0**-52


def _right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _rotl(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x << bits) | _right(x, 64 - bits)


def _round(v: list[torch.Tensor]) -> list[torch.Tensor]:
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
