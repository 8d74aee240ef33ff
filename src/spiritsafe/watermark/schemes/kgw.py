"""KGW marks, Bernoulli form: each token is green with probability γ, and green tokens' odds are raised by e^δ.

A distortion, unlike the other schemes, but the only one that marks a greedy reply. Greens among n distinct pairs are
Bin(n, γ) under H0, exactly, because every (context, token) pair has a coin of its own (no permuted list).

Source: Kirchenbauer et al., "A watermark for large language models" (2023), algorithm 2, soft list.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numba import njit, prange, uint64

from spiritsafe import pvalue
from spiritsafe.watermark._prf import LANES, U32, U64, Word, hash_keys, message_words, mix
from spiritsafe.watermark._types import F64, Law

__all__ = ["Kgw"]


class Kgw:
    """Scheme `kgw`. A token is green iff u < γ."""

    name: ClassVar[str] = "kgw"

    def __init__(self, context_width: int = 2, gamma: float = 0.25, delta: float = 2.0) -> None:
        self.context_width, self.gamma, self.delta = context_width, gamma, delta
        self.law: Law | None = ("bernoulli", gamma)
        # u = (⌊z / 2^12⌋ + ½) / 2^52 < γ  ⇔  ⌊z / 2^12⌋ < ⌈γ·2^52 - ½⌉  ⇔  z < that · 2^12
        self._below = np.uint64(math.ceil(gamma * 2.0**52 - 0.5) << 12)

    def green(self, hashes_B: U64, vocab: int, device: Any) -> Any:
        """(B, V) bool: which tokens are green after contexts with these hashes."""
        import torch

        if torch.device(device).type == "cpu":
            return torch.from_numpy(_green(hashes_B, vocab, self._below))
        return _green_torch(hashes_B, vocab, device, self._below)

    def mark(self, hashes_B: U64, probs_BV: Any) -> Any:
        """q ∝ p · e^(δ · green), (B, V) float32."""
        raised = probs_BV * (1.0 + self.green(hashes_B, probs_BV.shape[1], probs_BV.device) * math.expm1(self.delta))
        return raised / raised.sum(-1, keepdim=True)

    def scores(self, hashes_N: U64, tokens_N: U32) -> F64:
        return _scores(hashes_N, tokens_N, self._below)  # type: ignore[no-any-return]

    def sums(self, hashes_N: U64, tokens_N: U32, ends_D: Any) -> F64:
        return _sums(hashes_N, tokens_N, ends_D, self._below)  # type: ignore[no-any-return]

    def totals(self, keys_K2: U64, windows_Nk: U32, tokens_N: U32) -> F64:
        return _totals(keys_K2, message_words(windows_Nk), tokens_N, self._below)  # type: ignore[no-any-return]

    def log10_tail(self, n: int, total: float) -> float:
        return float(pvalue.binomial(n, self.gamma, round(total))) if n else 0.0

    def fewest(self, log10_level: float) -> int:
        """n with γ^n ≤ the level: all green is the best there is."""
        return max(1, math.ceil(log10_level / math.log10(self.gamma) - 1e-12))


def _green_torch(hashes_B: U64, vocab: int, device: Any, below: Word) -> Any:
    from spiritsafe.watermark._prf_torch import as_signed, token_values, top_bits

    return top_bits(token_values(as_signed(hashes_B, device), vocab), 52) < int(below) >> 12


@njit(cache=True, nogil=True)
def _green(hashes_B: U64, vocab: int, below: Word) -> Any:
    out = np.empty((hashes_B.shape[0], vocab), np.bool_)
    for b in range(hashes_B.shape[0]):
        h, row = hashes_B[b], out[b]
        for x in range(vocab):
            row[x] = mix(h, x) < below
    return out


@njit(cache=True, nogil=True)
def _scores(hashes_N: U64, tokens_N: U32, below: Word) -> F64:
    out = np.empty(hashes_N.shape[0])
    for n in range(hashes_N.shape[0]):
        out[n] = 1.0 if mix(hashes_N[n], tokens_N[n]) < below else 0.0
    return out


@njit(cache=True, nogil=True)
def _sums(hashes_N: U64, tokens_N: U32, ends_D: Any, below: Word) -> F64:
    out = np.zeros(ends_D.shape[0])
    start = 0
    for d in range(ends_D.shape[0]):
        greens = uint64(0)
        for n in range(start, ends_D[d]):
            greens += uint64(mix(hashes_N[n], tokens_N[n]) < below)
        out[d] = greens
        start = ends_D[d]
    return out


@njit(cache=True, parallel=True, nogil=True)
def _totals(keys_K2: U64, words_WN: U64, tokens_N: U32, below: Word) -> F64:
    count = keys_K2.shape[0]
    out = np.zeros(count)
    words_NW = np.ascontiguousarray(words_WN.T)
    for block in prange((count + LANES - 1) // LANES):
        low = block * LANES
        lanes = min(LANES, count - low)
        keys = np.ascontiguousarray(keys_K2[low : low + lanes].T)
        state, hashes = np.empty((4, lanes), np.uint64), np.empty(lanes, np.uint64)
        greens = np.zeros(lanes, np.uint64)
        for n in range(tokens_N.shape[0]):
            hash_keys(keys, words_NW[n], state, hashes)
            token = tokens_N[n]
            for i in range(lanes):
                greens[i] += uint64(mix(hashes[i], token) < below)
        for i in range(lanes):
            out[low + i] = greens[i]
    return out
