"""Upper tails of the two laws that counts and Gumbel scores follow, as log10."""

from __future__ import annotations

from typing import Any, overload

import numpy as np

from spiritsafe.pvalue._tails import F64, ln_beta, ln_gamma, to_log10

__all__ = ["binomial", "gamma"]


@overload
def binomial(n: int, p: float, k: float) -> float: ...
@overload
def binomial(n: int, p: float, k: F64) -> F64: ...
def binomial(n: int, p: float, k: Any) -> Any:
    """log10 P(Bin(n, p) ≥ k), exact: a float for one count k, an array for an array of counts.

    0.0 for k ≤ 0 and for n = 0. A k that is not whole counts as the next whole number. Relative error of the p-value
    itself: below 1e-10 up to n = 10^6, below 1e-9 up to n = 10^9 (checked to 10^-19,000; at k = n, where the logarithm
    itself has more digits than a float, 1e-15 of the logarithm).

    Raises:
        ValueError: p outside (0, 1), n < 0, k > n or k not a number: a count the caller cannot have seen.
    """
    if not 0.0 < p < 1.0:
        raise ValueError(f"a probability must lie strictly between 0 and 1, got {p}")
    if n < 0:
        raise ValueError(f"cannot have {n} trials")
    counts = np.atleast_1d(np.ceil(np.asarray(k, np.float64)))
    if not (counts <= n).all():
        raise ValueError(f"{np.max(counts):g} successes in {n} trials")
    ln_p = np.zeros(counts.shape)
    seen = counts > 0
    ln_p[seen] = ln_beta(counts[seen], n - counts[seen] + 1, p, 1.0 - p)
    return to_log10(ln_p, k)


@overload
def gamma(n: float, s: float) -> float: ...
@overload
def gamma(n: float, s: F64) -> F64: ...
def gamma(n: float, s: Any) -> Any:
    """log10 P(Gamma(n, 1) ≥ s), exact: n unit exponentials sum to s or more. A float for one s, an array for an array.

    0.0 for s ≤ 0 and for n = 0; the shape n may be any real ≥ 0. Relative error of the p-value itself: below 1e-9 up
    to n = 10^9 (checked to 10^-1,800,000).

    Raises:
        ValueError: n < 0, s infinite or not a number, or s > 0 where nothing was summed.
    """
    if not n >= 0:
        raise ValueError(f"cannot sum {n} exponentials")
    sums = np.atleast_1d(np.asarray(s, np.float64))
    if not np.isfinite(sums).all():
        raise ValueError("a sum of scores must be finite")
    ln_p = np.zeros(sums.shape)
    seen = sums > 0
    if n == 0 and seen.any():
        raise ValueError(f"no scores cannot sum to {np.max(sums):g}")
    ln_p[seen] = ln_gamma(n, sums[seen])
    return to_log10(ln_p, s)
