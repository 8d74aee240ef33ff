"""The upper tail of (1 − α)·Gamma(n) + α·Gamma(n), for a test a document: what `pvalue.gamma_sum` gives, in one kernel.

With b the smaller scale, a the larger and p = b/a the sum is b·Gamma(2n + K), K ~ NB(n, p) (Moschopoulos, "The
distribution of the sum of independent gamma random variables", 1985, eq. 2.4 and 2.9), so its tail at s is
Σ_k P(K = k) Q(2n + k, x), x = s/b, with only positive terms t_k. P(K = k) is log-concave in k, and so is Q(2n + k, x) =
P(Poisson(x) < 2n + k). Hence t_{k+1}/t_k falls with k, and what a window low … high leaves out is at most two geometric
series. Those are added, and so is more than the logarithms can have lost to rounding: the result is an upper bound.
"""

from __future__ import annotations

from math import exp, inf, lgamma, log, log1p, sqrt

from numba import njit

from spiritsafe import pvalue

__all__ = ["log10_tail"]

_LONGEST = 2_000_000.0  # terms
_NEGLIGIBLE = 1e-14
_LARGE = 1e250
_LN10 = log(10.0)


def log10_tail(n: int, alpha: float, s: float) -> float:
    """log10 P((1 − α)·Gamma(n) + α·Gamma(n) ≥ s) for a whole n ≥ 1: exact to rounding, or above."""
    small, large = sorted((alpha, 1 - alpha))
    if small in (0.0, 0.5):
        return pvalue.gamma_sum((n, n), (small, large), s)
    if s <= 0:
        return 0.0
    p, x = small / large, s / small
    theta = _tilt(n, p, x)
    q = (1 - p) / (1 - theta)
    mean, sd = n * q / (1 - q), sqrt(n * q) / (1 - q)
    if 20 * sd + 2 * sqrt(x) > _LONGEST:
        return pvalue.gamma_sum((n, n), (small, large), s)
    ln_p: float = _ln_tail(n, p, x, mean, sd)
    return min(0.0, ln_p / _LN10)


def _tilt(n: int, p: float, x: float) -> float:
    """The saddlepoint θ ∈ [0, p): n/(p − θ) + n/(1 − θ) = x, or 0 where that lies below."""
    middle = (1 + p) / 2 - n / x
    return max(0.0, middle - sqrt(middle * middle - p + n * (1 + p) / x))


@njit(cache=True, nogil=True)
def _ln_tail(n: int, p: float, x: float, mean: float, sd: float) -> float:
    ln_q = log1p(-p)
    width = 9.0
    while True:
        low = max(0.0, float(int(mean - width * sd)))
        a = 2.0 * n + low
        hazard = _hazard(a, x)  # Poisson(x) mass at a over that below a
        # Q(a, x) = mass at a / hazard
        ln_mass = -x + a * log(x) - lgamma(a + 1.0)
        ln_below = min(0.0, ln_mass - log(hazard)) if hazard > 0.0 else 0.0
        ln_weight = lgamma(n + low) - lgamma(low + 1.0) - lgamma(float(n)) + n * log(p) + low * ln_q
        lost = 2e-15 * (lgamma(n + low) + lgamma(a + 1.0) + x + a * abs(log(x)))

        term, total, k, ln_scale, falls = 1.0, 1.0, low, 0.0, inf
        while True:
            ratio = exp(ln_q) * (n + k) / (k + 1.0) * (1.0 + hazard)
            if k == low:
                falls = ratio
            if ratio < 1.0 and term * ratio / (1.0 - ratio) < _NEGLIGIBLE * total:
                total += term * ratio / (1.0 - ratio)
                break
            term *= ratio
            total += term
            hazard *= x / (a + 1.0) / (1.0 + hazard)
            a += 1.0
            k += 1.0
            if total > _LARGE:
                ln_scale += log(total)
                term /= total
                total = 1.0
        result = ln_weight + ln_below + log(total) + ln_scale + lost
        if low == 0.0:
            return result
        if falls > 1.0:
            below = ln_weight + ln_below - log(falls - 1.0)
            if below < result - 32.0:
                return result + exp(below - result)
        width *= 1.5


@njit(cache=True, nogil=True)
def _hazard(a: float, x: float) -> float:
    """P(N = a) / P(N < a) for N ~ Poisson(x) and a whole a ≥ 1; 0.0 where it is below 1e-250."""
    term, total, j = 1.0, 1.0, a - 1.0
    while j > 0.0 and total < _LARGE:
        term *= j / x
        total += term
        if term < 1e-17 * total:
            break
        j -= 1.0
    return x / a / total if total < _LARGE else 0.0
