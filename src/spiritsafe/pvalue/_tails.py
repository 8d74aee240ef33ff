"""Exact upper tails of the binomial and gamma laws, in natural logarithms, far below what a float can hold.

Where the tail itself is a comfortable float, scipy's incomplete beta and gamma functions give it. Below that it is a
density times a continued fraction: the density from Loader's deviance form, which loses nothing to cancellation (C.
Loader, "Fast and accurate computation of binomial probabilities", 2000), the fraction from DiDonato and Morris (ACM
TOMS 18, 1992, eq. 9) for the beta and from Legendre (DLMF 8.9.2) for the gamma, both of positive terms far out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

__all__ = ["F64", "binomial_density", "ln_beta", "ln_gamma", "poisson_density", "to_log10"]

F64 = NDArray[np.float64]
_SMALLEST = 1e-250
_HALF_LN_2PI = 0.9189385332046727
_LENTZ_TOLERANCE = 1e-15
_LENTZ_STEPS = 100_000


def _stirling_error(x: F64) -> F64:
    """ln Γ(x+1) minus Stirling's approximation, for x > 0."""
    large = np.maximum(x, 10.0)
    y = 1.0 / (large * large)
    out = (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y * (1 / 1188 - y * (691 / 360360)))))) / large
    below = x < 10.0
    if below.any():
        small = x[below]
        out[below] = special.gammaln(small + 1) - (small + 0.5) * np.log(small) + small - _HALF_LN_2PI
    return np.asarray(out)


def _deviance(x: F64, mean: F64 | float) -> F64:
    """x ln(x/mean) + mean − x for x, mean > 0, without cancellation where they are close."""
    v = (x - mean) / (x + mean)
    near = np.abs(v) < 0.1
    w = np.where(near, v, 0.0)
    w2 = w * w
    odd = 1 / 17 + w2 / 19
    for j in range(15, 1, -2):
        odd = 1 / j + w2 * odd
    series = (x - mean) * w + 2 * x * w * w2 * odd
    return np.asarray(np.where(near, series, x * np.log(x / mean) + mean - x))


def poisson_density(x: F64, mean: F64 | float) -> F64:
    """ln(mean^x e^−mean / Γ(x+1)) for real x > 0."""
    return -_stirling_error(x) - _deviance(x, mean) - _HALF_LN_2PI - 0.5 * np.log(x)


def binomial_density(x: F64 | float, n: F64 | float, p: float, q: float) -> F64:
    """ln(Γ(n+1) / (Γ(x+1) Γ(n−x+1)) p^x q^(n−x)) for real 0 ≤ x ≤ n, with q = 1 − p given for its accuracy."""
    x, n = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(n, np.float64))
    inside = (x > 0) & (x < n)
    a, m = np.where(inside, x, 1.0), np.where(inside, n, 2.0)
    b = m - a
    body = _stirling_error(m) - _stirling_error(a) - _stirling_error(b) - _deviance(a, m * p) - _deviance(b, m * q)
    body += 0.5 * np.log(m / (a * b)) - _HALF_LN_2PI
    edge = np.where(x > 0, n * np.log(p), n * np.log1p(-p) if p < 0.5 else n * np.log(q))
    return np.asarray(np.where(inside, body, edge))


def _fraction(first: F64, term: Callable[[int], tuple[F64, F64]]) -> F64:
    """first + a_1/(b_1 + a_2/(b_2 + …)) with (a_m, b_m) = term(m): modified Lentz, for positive terms."""
    value = first.copy()
    c, d = first.copy(), np.zeros_like(first)
    for m in range(1, _LENTZ_STEPS):
        a, b = term(m)
        d = 1.0 / (b + a * d)
        c = b + a / c
        step = c * d
        value *= step
        if np.max(np.abs(step - 1.0)) < _LENTZ_TOLERANCE:
            break
    return value


def ln_beta(a: F64 | float, b: F64 | float, x: float, y: float) -> F64:
    """ln I_x(a, b) for a, b > 0 and y = 1 − x: P(Bin(a + b − 1, x) ≥ a) for whole numbers."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    value = special.betainc(a, b, x)
    out = np.empty(a.shape)
    high = value > 0.5
    out[high] = np.log1p(-special.betainc(b[high], a[high], y))
    middle = ~high & (value > _SMALLEST)
    out[middle] = np.log(value[middle])
    low = ~high & ~middle
    if low.any():
        u, v = a[low], b[low]

        def term(m: int) -> tuple[F64, F64]:
            up = u + 2 * m - 1
            left = m * (v - m) * x / up
            ahead = (u + m) * (u - (u + v) * x + 1 + m * (1 + y)) / (up + 2)
            return (u + m - 1) * (u + v + m - 1) * left * x / up, m + left + ahead

        first = u * (u - (u + v) * x + 1) / (u + 1)
        out[low] = np.log(u * y) + binomial_density(u, u + v - 1, x, y) - np.log(_fraction(first, term))
    return out


def ln_gamma(a: F64 | float, x: F64 | float) -> F64:
    """ln Q(a, x) = ln P(Gamma(a, 1) ≥ x) for a > 0 and x ≥ 0."""
    a, x = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(x, np.float64))
    value = special.gammaincc(a, x)
    out = np.empty(a.shape)
    high = value > 0.5
    out[high] = np.log1p(-special.gammainc(a[high], x[high]))
    middle = ~high & (value > _SMALLEST)
    out[middle] = np.log(value[middle])
    low = ~high & ~middle
    if low.any():
        u, z = a[low], x[low]

        def term(m: int) -> tuple[F64, F64]:
            return m * (u - m), z + 2 * m + 1 - u

        out[low] = np.log(u) + poisson_density(u, z) - np.log(_fraction(z + 1 - u, term))
    return out


def to_log10(ln_p: F64, like: Any) -> Any:
    """Natural logarithms as log10 ≤ 0, a float where the caller's last argument was a scalar."""
    log10 = np.minimum(ln_p / np.log(10.0), 0.0) + 0.0
    return float(log10.reshape(-1)[0]) if np.ndim(like) == 0 else log10
