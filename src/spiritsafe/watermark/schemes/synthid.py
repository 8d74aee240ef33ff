"""SynthID-style tournament marks: `depth` layers of coin flips between two draws, in closed form.

Layer l gives every token a bit g_l and turns p into p · (1 + g_l - Σ p g_l): what a match between two independent draws
leaves, the one with bit 1 winning. Over a random key each layer leaves p unchanged: no single reply is distorted. The
bits are the top `depth` bits of the token's PRF value, independent and fair, so that Σ bits ~ Bin(depth · n, ½) under
H0, exactly (the published table-based bits are not: their mean depends on the table).

Source: Dathathri et al., "Scalable watermarking for identifying large language model outputs", Nature 634 (2024),
methods, non-distortionary two-candidate tournament.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numba import int32, njit, prange, uint64

from spiritsafe import pvalue
from spiritsafe.watermark._prf import LANES, U32, U64, Word, hash_keys, message_words, mix
from spiritsafe.watermark._types import F64, Law

__all__ = ["SynthId"]

_BLOCK = 512
_COMPACT_EVERY = 6  # layers
_NOTHING = np.float32(1e-13)  # a whole vocabulary of these is less than the rounding of float32 probabilities


class SynthId:
    """Scheme `synthid`: distortion-free for one reply; keeps what randomness the tournament leaves."""

    name: ClassVar[str] = "synthid"

    def __init__(self, context_width: int = 2, depth: int = 30) -> None:
        self.context_width, self.depth = context_width, depth
        self.law: Law | None = None

    def mark(self, hashes_B: U64, probs_BV: Any) -> Any:
        """(B, V) float32 after all layers."""
        import torch

        if probs_BV.device.type == "cpu":
            return torch.from_numpy(_tournament(hashes_B, probs_BV.contiguous().numpy(), self.depth))
        return _tournament_torch(hashes_B, probs_BV, self.depth)

    def scores(self, hashes_N: U64, tokens_N: U32) -> F64:
        return _scores(hashes_N, tokens_N, self.depth)  # type: ignore[no-any-return]

    def sums(self, hashes_N: U64, tokens_N: U32, ends_D: Any) -> F64:
        return _sums(hashes_N, tokens_N, ends_D, self.depth)  # type: ignore[no-any-return]

    def totals(self, keys_K2: U64, windows_Nk: U32, tokens_N: U32) -> F64:
        return _totals(keys_K2, message_words(windows_Nk), tokens_N, self.depth)  # type: ignore[no-any-return]

    def log10_tail(self, n: int, total: float) -> float:
        return float(pvalue.binomial(self.depth * n, 0.5, round(total))) if n else 0.0

    def fewest(self, log10_level: float) -> int:
        """n with 2^(-depth · n) ≤ the level: all bits one is the best there is."""
        return max(1, math.ceil(log10_level / (self.depth * math.log10(0.5)) - 1e-12))


def _tournament_torch(hashes_B: U64, probs_BV: Any, depth: int) -> Any:
    from spiritsafe.watermark._prf_torch import as_signed, token_values, top_bits

    bits_BV = top_bits(token_values(as_signed(hashes_B, probs_BV.device), probs_BV.shape[1]), depth)
    p_BV = probs_BV.clone()
    for layer in reversed(range(depth)):
        g_BV = ((bits_BV >> layer) & 1).to(p_BV.dtype)
        p_BV *= 1.0 + g_BV - (p_BV * g_BV).sum(-1, keepdim=True)
    return p_BV / p_BV.sum(-1, keepdim=True)


@njit(inline="always")
def _ones(z: Word, depth: int) -> Word:
    """How many of the top `depth` bits are set (the usual SWAR count, which SIMD can do)."""
    v = z >> uint64(64 - depth)
    v -= (v >> uint64(1)) & uint64(0x5555555555555555)
    v = (v & uint64(0x3333333333333333)) + ((v >> uint64(2)) & uint64(0x3333333333333333))
    v = (v + (v >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)
    v += v >> uint64(8)
    v += v >> uint64(16)
    v += v >> uint64(32)
    return v & uint64(0x7F)


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def _layer(p_N: Any, bits_N: Any, layer: int, mass: float) -> Any:
    """One layer on a block of tokens, in place; `mass`: Σ p g of all tokens. Returns the block's Σ p g of the next."""
    following = np.float32(0.0)
    kept = np.float32(1.0 - mass)
    for i in range(p_N.shape[0]):
        p = p_N[i] * (kept + np.float32((bits_N[i] >> int32(layer)) & int32(1)))
        p_N[i] = p
        following += p * np.float32((bits_N[i] >> int32(layer - 1)) & int32(1)) if layer else p
    return following


@njit(cache=True, nogil=True)
def _compact(p_N: Any, bits_N: Any, tokens_N: Any) -> Any:
    """Move the tokens that can still win to the front, once it saves half; returns how many are left in front."""
    alive = 0
    for i in range(p_N.shape[0]):
        alive += p_N[i] > _NOTHING
    if 2 * alive > p_N.shape[0]:
        return p_N.shape[0]
    count = 0
    for i in range(p_N.shape[0]):
        p_N[count], bits_N[count], tokens_N[count] = p_N[i], bits_N[i], tokens_N[i]
        count += p_N[i] > _NOTHING
    return count


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def _tournament(hashes_B: U64, probs_BV: Any, depth: int) -> Any:
    rows, vocab = probs_BV.shape
    out = np.zeros_like(probs_BV)
    tokens, p, bits = np.empty(vocab, np.int32), np.empty(vocab, np.float32), np.empty(vocab, np.int32)
    for b in range(rows):
        h = hashes_B[b]
        tokens[:], p[:] = np.arange(vocab), probs_BV[b]
        count, left = _compact(p, bits, tokens), 0.0
        for first in range(depth, 0, -32):  # layers first-1 … : at most 32 bits at a time
            skipped, layers = depth - first, min(32, first)
            for i in range(count):
                bits[i] = int32((mix(h, tokens[i]) << uint64(skipped)) >> uint64(64 - layers))
            mass = 0.0
            for i in range(count):
                mass += p[i] * np.float32((bits[i] >> int32(layers - 1)) & int32(1))
            for layer in range(layers - 1, -1, -1):
                left = 0.0
                for low in range(0, count, _BLOCK):
                    high = min(low + _BLOCK, count)
                    left += _layer(p[low:high], bits[low:high], layer, mass)
                mass = left
                if layer % _COMPACT_EVERY == 0:
                    count = _compact(p[:count], bits, tokens)
        # after the last layer, `left` is all the mass: 1 up to rounding
        scale = np.float32(1.0 / left)
        for i in range(count):
            out[b, tokens[i]] = p[i] * scale
    return out


@njit(cache=True, nogil=True)
def _scores(hashes_N: U64, tokens_N: U32, depth: int) -> F64:
    out = np.empty(hashes_N.shape[0])
    for n in range(hashes_N.shape[0]):
        out[n] = _ones(mix(hashes_N[n], tokens_N[n]), depth)
    return out


@njit(cache=True, nogil=True)
def _sums(hashes_N: U64, tokens_N: U32, ends_D: Any, depth: int) -> F64:
    out = np.zeros(ends_D.shape[0])
    start = 0
    for d in range(ends_D.shape[0]):
        ones = uint64(0)
        for n in range(start, ends_D[d]):
            ones += _ones(mix(hashes_N[n], tokens_N[n]), depth)
        out[d] = ones
        start = ends_D[d]
    return out


@njit(cache=True, parallel=True, nogil=True)
def _totals(keys_K2: U64, words_WN: U64, tokens_N: U32, depth: int) -> F64:
    count = keys_K2.shape[0]
    out = np.zeros(count)
    words_NW = np.ascontiguousarray(words_WN.T)
    for block in prange((count + LANES - 1) // LANES):
        low = block * LANES
        lanes = min(LANES, count - low)
        keys = np.ascontiguousarray(keys_K2[low : low + lanes].T)
        state, hashes = np.empty((4, lanes), np.uint64), np.empty(lanes, np.uint64)
        ones = np.zeros(lanes, np.uint64)
        for n in range(tokens_N.shape[0]):
            hash_keys(keys, words_NW[n], state, hashes)
            token = tokens_N[n]
            for i in range(lanes):
                ones[i] += _ones(mix(hashes[i], token), depth)
        for i in range(lanes):
            out[low + i] = ones[i]
    return out
