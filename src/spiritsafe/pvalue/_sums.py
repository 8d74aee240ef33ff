"""The upper tail of a sum of gammas with different scales.

P. G. Moschopoulos, "The distribution of the sum of independent gamma random variables" (1985): with β the smallest
scale, Σ scale_i·Gamma(shape_i) = β·Gamma(Σ shape_i + K), where K is a sum of independent negative binomials
NB(shape_i, β/scale_i). So the tail is the mixture Σ_k P(K = k) Q(Σ shape_i + k, s/β), every term of it positive.

Only the k that matter are summed. Under the exponential tilt at θ (s/β in units of β) the left-out terms are at most
exp(Chernoff exponent at θ) × P_tilted(K left out), and that is added: the result is exact to rounding, or above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from scipy import special

from spiritsafe.pvalue._tails import F64, binomial_density, ln_gamma, poisson_density, to_log10

__all__ = ["gamma_sum"]

_LEFT_OUT = -41.0  # ln of the tilted mass that may stay outside the window
_GRID = np.logspace(-5, -0.3, 150)
_ROW = 64
_WIDEST = 4_000_000  # terms in numpy
_LONGEST = 200_000  # steps of a recursion in Python


class _Mixture:
    """The law of K for scales β/(1 − q_j), and what the exponential tilt makes of it."""

    def __init__(self, shapes_J: F64, scales_J: F64) -> None:
        self.beta = float(scales_J.min())
        self.rho = float(shapes_J.sum())
        above = scales_J > self.beta
        self.shape, self.scale = shapes_J[above], scales_J[above]
        self.p = self.beta / self.scale
        self.q = (self.scale - self.beta) / self.scale

    def tilt(self, x: float) -> float:
        """θ ≥ 0 near the saddlepoint of the sum in units of β: Σ shape_j / (p_j − θ) + base = x."""
        base = self.rho - float(self.shape.sum())
        low, high = 0.0, float(self.p.min())
        for _ in range(60):
            theta = 0.5 * (low + high)
            if base / (1 - theta) + float(np.sum(self.shape / (self.p - theta))) < x:
                low = theta
            else:
                high = theta
        return low

    def chernoff(self, theta: float, x: float) -> float:
        base = self.rho - float(self.shape.sum())
        return float(-theta * x - base * np.log1p(-theta) - np.sum(self.shape * np.log1p(-theta / self.p)))

    def outside(self, theta: float, low: int, high: int) -> float:
        """ln of a bound on P_tilted(K < low or K > high): Chernoff's for a sum of negative binomials."""
        q = self.q / (1 - theta)
        pole = -float(np.log(q.max()))

        def best(ln_z: F64, k: int) -> float:
            moved = np.log1p(-q)[:, None] - np.log(-np.expm1(np.log(q)[:, None] + ln_z))
            return float(np.min(self.shape @ moved - k * ln_z))

        above = best(pole * np.concatenate([_GRID, 1 - _GRID]), high + 1)
        below = best(-pole * np.concatenate([_GRID, 1 / _GRID]), low - 1) if low > 0 else -np.inf
        return float(np.logaddexp(above, below))

    def window(self, theta: float) -> tuple[int, int, float]:
        """The k to sum over, and ln of the bound on the tilted mass outside."""
        q = self.q / (1 - theta)
        mean = float(np.sum(self.shape * q / (1 - q)))
        width = float(np.sqrt(np.sum(self.shape * q / (1 - q) ** 2))) * 9 + float(np.max(1 / (1 - q)))
        for _ in range(40):
            low, high = max(0, int(mean - width)), int(mean + width) + 1
            left_out = self.outside(theta, low, high)
            if left_out < _LEFT_OUT:
                break
            width *= 1.3
        return low, high, left_out

    def ln_probabilities(self, theta: float, low: int, high: int) -> F64:
        """ln P(K = k) for k = low … high."""
        if self.shape.size == 1:
            k = np.arange(low, high + 1, dtype=np.float64)
            r, p, q = float(self.shape[0]), float(self.p[0]), float(self.q[0])
            return binomial_density(r, r + k, p, q) + np.log(r / (r + k))
        # The paper's eq. 2.4 in O(K·J), on the tilted q: k·d_k = Σ_j shape_j a_j with a_j ← q_j (d_{k−1} + a_j).
        tilted = self.q / (1 - theta)
        out = np.zeros(high + 1)
        d, offset, a = 1.0, 0.0, np.zeros_like(tilted)
        for i in range(1, high + 1):
            a = tilted * (d + a)
            d = float(self.shape @ a) / i
            if d > 1e200 or d < 1e-200:
                offset += float(np.log(d))
                a, d = a / d, 1.0
            out[i] = offset + np.log(d)
        untilted = float(np.sum(self.shape * np.log(self.p)))
        return np.asarray(out + untilted + np.arange(high + 1) * np.log1p(-theta))[low:]

    def ln_tails(self, theta: float, low: int, high: int, x: float) -> F64:
        """ln Q(rho + k, x) for k = low … high: rows that start exactly and rise by Q(a + 1, x) = Q(a, x) + density."""
        slope = -float(np.log1p(-theta))
        row = max(1, min(_ROW, int(500 / max(slope, 1e-9))))
        rows = -(-(high - low + 1) // row)
        a = self.rho + low + np.arange(rows * row, dtype=np.float64).reshape(rows, row)
        first = ln_gamma(a[:, 0], x)
        steps = np.exp(poisson_density(a[:, :-1], x) - first[:, None])
        growth = np.concatenate([np.zeros((rows, 1)), np.log1p(np.cumsum(steps, axis=1))], axis=1)
        return np.asarray(first[:, None] + growth).reshape(-1)[: high - low + 1]

    def ln_tail(self, s: float) -> float:
        x = s / self.beta
        theta = self.tilt(x)
        low, high, left_out = self.window(theta)
        bound = self.chernoff(theta, x)
        if high - low > _WIDEST or (self.shape.size > 1 and high > _LONGEST):
            return bound
        terms = self.ln_probabilities(theta, low, high) + self.ln_tails(theta, low, high, x)
        return float(np.logaddexp(special.logsumexp(terms), bound + left_out))


@overload
def gamma_sum(shapes: Sequence[float] | F64, scales: Sequence[float] | F64, s: float) -> float: ...
@overload
def gamma_sum(shapes: Sequence[float] | F64, scales: Sequence[float] | F64, s: F64) -> F64: ...
def gamma_sum(shapes: Sequence[float] | F64, scales: Sequence[float] | F64, s: Any) -> Any:
    """log10 P(Σ scale_j·Gamma(shape_j, 1) ≥ s): exact to rounding or above the exact value, never below it.

    The law of two-key Gumbel scores, α·Gamma(n) + (1 − α)·Gamma(n), among others. Relative error of the p-value with
    two scales: below 1e-9 (checked to 10^-3000); cost for α = 0.1: 2 ms at n = 100, 40 ms at n = 10^5. Where that would
    take too many terms (scales a thousand apart and long sums, or three scales and K > 200,000) the Chernoff bound is
    returned instead. Zero shapes and scales add nothing; 0.0 for s ≤ 0.

    Raises:
        ValueError: shapes and scales of different lengths, a negative or infinite value, s not finite, or s > 0 where
            nothing was summed.
    Source: Moschopoulos, "The distribution of the sum of independent gamma random variables", 1985, eq. 2.4 and 2.9.
    """
    pairs = np.asarray([shapes, scales], np.float64)
    if pairs.ndim != 2 or not (np.isfinite(pairs) & (pairs >= 0)).all():
        raise ValueError("shapes and scales must be equally many numbers, finite and not negative")
    sums = np.atleast_1d(np.asarray(s, np.float64))
    if not np.isfinite(sums).all():
        raise ValueError("a sum of scores must be finite")
    shape, scale = pairs[:, (pairs > 0).all(axis=0)]
    distinct, which = np.unique(scale, return_inverse=True)
    merged = np.bincount(which, weights=shape, minlength=distinct.size)
    ln_p = np.zeros(sums.shape)
    seen = sums > 0
    if distinct.size == 0 and seen.any():
        raise ValueError(f"no scores cannot sum to {np.max(sums):g}")
    if distinct.size == 1:
        ln_p[seen] = ln_gamma(merged[0], sums[seen] / distinct[0])
    elif distinct.size > 1:
        mixture = _Mixture(merged.astype(np.float64), distinct)
        ln_p[seen] = [mixture.ln_tail(float(one)) for one in sums[seen]]
    return to_log10(ln_p, s)
