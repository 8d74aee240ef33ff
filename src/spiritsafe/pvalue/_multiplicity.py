"""Several p-values at once, and p-values from ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["benjamini_hochberg", "bonferroni", "holm", "rank"]

F64 = NDArray[np.float64]
Log10s = Sequence[float] | F64


def _checked(log10_ps: Log10s, tests: int | None) -> tuple[F64, int]:
    values = np.asarray(log10_ps, np.float64)
    if values.ndim != 1:
        raise ValueError(f"log10 p-values must be one list, got shape {values.shape}")
    if np.isnan(values).any() or (values > 0).any():
        raise ValueError("log10 p-values must be numbers ≤ 0")
    m = values.size if tests is None else int(tests)
    if m < values.size:
        raise ValueError(f"{values.size} p-values cannot come from {m} tests")
    return values, m


def rank(exceeding: int, decoys: int) -> float:
    """The p-value (not its logarithm) of a statistic that `exceeding` of `decoys` decoy statistics reach: (1+b)/(1+K).

    Exactly valid when statistic and decoys are exchangeable under the null hypothesis; count ties as exceeding (Phipson
    and Smyth, 2010). Its smallest value is 1/(1+K): a rank cannot say more than its decoys can.

    Raises:
        ValueError: not 0 ≤ exceeding ≤ decoys.
    """
    if not 0 <= exceeding <= decoys:
        raise ValueError(f"{exceeding} of {decoys} decoys cannot exceed")
    return (1 + exceeding) / (1 + decoys)


@overload
def bonferroni(log10_p: float, tests: int) -> float: ...
@overload
def bonferroni(log10_p: F64, tests: int) -> F64: ...
def bonferroni(log10_p: Any, tests: int) -> Any:
    """log10 of p × tests, at most 0: what the best of `tests` p-values is worth, however they depend on each other.

    Raises:
        ValueError: fewer than one test.
    """
    if tests < 1:
        raise ValueError(f"a correction needs at least one test, got {tests}")
    corrected = np.minimum(np.asarray(log10_p, np.float64) + np.log10(tests), 0.0)
    return float(corrected) if np.ndim(log10_p) == 0 else corrected


def holm(log10_ps: Log10s, tests: int | None = None) -> F64:
    """Holm's step-down adjusted log10 p-values (N,), in the order given.

    Rejecting those ≤ α keeps the chance of any false rejection ≤ α, however the tests depend on each other.

    tests: how many hypotheses there were, when more than are given. The missing ones count as never rejected, which is
    valid whatever their p-values were.

    Raises:
        ValueError: tests < N, or a value that is no log10 p-value.
    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    values, m = _checked(log10_ps, tests)
    order = np.argsort(values, kind="stable")
    stepped = values[order] + np.log10(m - np.arange(values.size))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 0.0)
    return adjusted


def benjamini_hochberg(log10_ps: Log10s, tests: int | None = None) -> F64:
    """Benjamini and Hochberg's adjusted log10 p-values (N,), in the order given.

    Rejecting those ≤ q keeps the expected share of false ones among the rejected ≤ q, if the tests are independent or
    positively dependent.

    tests: as in `holm`; the missing ones count as p = 1.

    Raises:
        ValueError: tests < N, or a value that is no log10 p-value.
    Source: Benjamini and Hochberg, "Controlling the false discovery rate", 1995.
    """
    values, m = _checked(log10_ps, tests)
    order = np.argsort(values, kind="stable")
    stepped = values[order] + np.log10(m) - np.log10(np.arange(1, values.size + 1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.minimum.accumulate(stepped[::-1])[::-1], 0.0)
    return adjusted
