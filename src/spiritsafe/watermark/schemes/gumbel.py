"""Gumbel-max marks: the token that an exponential race, run with the PRF's uniforms, lets win.

The token is argmin over x of -ln(u_x) / p_x, which is a draw from p when u is uniform: no single reply is distorted.
A token that won has u near 1; its score -ln(1 - u) is exponential under H0, and n of them sum to Gamma(n, 1), exactly.

Source: Aaronson, "Watermarking of large language models" (2023); Kirchenbauer et al. call it "exponential minimum
sampling". The score's mean for a token of probability p is the harmonic number H(1/p): 1 for a certain token.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numba import njit, prange

from spiritsafe import pvalue
from spiritsafe.watermark._prf import LANES, U32, U64, hash_keys, message_words, mix, uniform
from spiritsafe.watermark._types import F64, Law

__all__ = ["Gumbel"]

_GROUP = 16  # factors 1 - u multiplied before a logarithm: at least 2^(-53 · 16), far from underflow
_LARGEST = 53 * math.log(2)  # the score of u = 1 - 2^-53


class Gumbel:
    """Scheme `gumbel-dual`: distortion-free for one reply, deterministic given key and context."""

    name: ClassVar[str] = "gumbel-dual"

    def __init__(self, context_width: int = 2) -> None:
        self.context_width = context_width
        self.law: Law | None = ("exponential", None)

    def mark(self, hashes_B: U64, probs_BV: Any) -> Any:
        """(B, V) float32 with all mass on each row's winner."""
        import torch

        if probs_BV.device.type == "cpu":
            winners = torch.from_numpy(_winners(hashes_B, probs_BV.contiguous().numpy()))
        else:
            winners = _winners_torch(hashes_B, probs_BV)
        return torch.zeros_like(probs_BV).scatter_(1, winners[:, None], 1.0)

    def scores(self, hashes_N: U64, tokens_N: U32) -> F64:
        return _scores(hashes_N, tokens_N)  # type: ignore[no-any-return]

    def sums(self, hashes_N: U64, tokens_N: U32, ends_D: Any) -> F64:
        return _sums(hashes_N, tokens_N, ends_D)  # type: ignore[no-any-return]

    def totals(self, keys_K2: U64, windows_Nk: U32, tokens_N: U32) -> F64:
        return _totals(keys_K2, message_words(windows_Nk), tokens_N)  # type: ignore[no-any-return]

    def log10_tail(self, n: int, total: float) -> float:
        return float(pvalue.gamma(n, total)) if n else 0.0

    def fewest(self, log10_level: float) -> int:
        """The first n whose largest possible sum, n · 53 ln 2, has a tail at the level."""
        n = 1
        while self.log10_tail(n, n * _LARGEST) > log10_level:
            n += 1
        return n


def _winners_torch(hashes_B: U64, probs_BV: Any) -> Any:
    from spiritsafe.watermark._prf_torch import as_signed, token_values, uniforms

    u_BV = uniforms(token_values(as_signed(hashes_B, probs_BV.device), probs_BV.shape[1]))
    return (-u_BV.log() / probs_BV.double()).argmin(-1)  # p = 0 gives infinity: never the least


@njit(cache=True, nogil=True)
def _winners(hashes_B: U64, probs_BV: Any) -> Any:
    out = np.empty(probs_BV.shape[0], np.int64)
    for b in range(probs_BV.shape[0]):
        probs, h = probs_BV[b], hashes_B[b]
        best, winner = np.inf, -1
        for x in range(probs.shape[0]):
            p = np.float64(probs[x])
            if p > 0.0:
                u = uniform(mix(h, x))
                # 1 - u ≤ -ln u: most tokens lose without a logarithm
                if 1.0 - u < best * p:
                    arrival = -np.log(u) / p
                    if arrival < best:
                        best, winner = arrival, x
        out[b] = winner
    return out


@njit(cache=True, nogil=True)
def _scores(hashes_N: U64, tokens_N: U32) -> F64:
    out = np.empty(hashes_N.shape[0])
    for n in range(hashes_N.shape[0]):
        out[n] = -np.log(1.0 - uniform(mix(hashes_N[n], tokens_N[n])))
    return out


@njit(cache=True, nogil=True)
def _sums(hashes_N: U64, tokens_N: U32, ends_D: Any) -> F64:
    out = np.zeros(ends_D.shape[0])
    at = 0
    for d in range(ends_D.shape[0]):
        total = 0.0
        while at < ends_D[d]:
            product = 1.0
            for n in range(at, min(at + _GROUP, ends_D[d])):
                product *= 1.0 - uniform(mix(hashes_N[n], tokens_N[n]))
            total -= np.log(product)
            at = min(at + _GROUP, ends_D[d])
        out[d] = total
    return out


@njit(cache=True, parallel=True, nogil=True)
def _totals(keys_K2: U64, words_WN: U64, tokens_N: U32) -> F64:
    count = keys_K2.shape[0]
    out = np.zeros(count)
    words_NW = np.ascontiguousarray(words_WN.T)
    for block in prange((count + LANES - 1) // LANES):
        low = block * LANES
        lanes = min(LANES, count - low)
        keys = np.ascontiguousarray(keys_K2[low : low + lanes].T)
        state, hashes = np.empty((4, lanes), np.uint64), np.empty(lanes, np.uint64)
        products, sums = np.ones(lanes), np.zeros(lanes)
        for n in range(tokens_N.shape[0]):
            hash_keys(keys, words_NW[n], state, hashes)
            token = tokens_N[n]
            for i in range(lanes):
                products[i] *= 1.0 - uniform(mix(hashes[i], token))
            if n % _GROUP == _GROUP - 1:
                for i in range(lanes):
                    sums[i] -= np.log(products[i])
                    products[i] = 1.0
        for i in range(lanes):
            out[low + i] = sums[i] - np.log(products[i])
    return out
