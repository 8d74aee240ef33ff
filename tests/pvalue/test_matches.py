"""Agreeing places: never below the exact tail, valid with a choice among lists, close where it can be."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from spiritsafe import pvalue


def tail(h: int, k: int) -> float:
    """P(a uniformly random permutation of h has at least k fixed points), from the derangement numbers."""
    total = sum(
        math.comb(h, j) * round(sum((-1) ** i * math.factorial(h - j) / math.factorial(i) for i in range(h - j + 1)))
        for j in range(k, h + 1)
    )
    return total / math.factorial(h)


def test_one_order_lies_above_the_exact_tail_by_little() -> None:
    for h in (2, 3, 8, 15):
        for k in range(h + 1):
            exact = tail(h, k)
            if exact > 0:
                assert pvalue.matches(k, 1) >= math.log10(exact) - 1e-12
    for k in (5, 20, 300):
        smallest = -math.lgamma(k + 1) / math.log(10)  # 1/k!, what the bound would be without Chernoff's loss
        assert smallest <= pvalue.matches(k, 1) <= smallest + 0.5 * math.log10(2 * math.pi * k)


def test_the_tail_above_is_the_real_one() -> None:
    for h in (3, 5, 6):
        orders = list(itertools.permutations(range(h)))
        fixed = np.array([sum(i == p for i, p in enumerate(order)) for order in orders])
        for k in range(h + 1):
            assert tail(h, k) == pytest.approx(float(np.mean(fixed >= k)))


@pytest.mark.parametrize(("h", "orders", "choices"), [(64, 1, 1), (64, 6, 1), (7, 3, 1), (64, 1, 5), (64, 4, 12)])
def test_random_orders_are_never_rejected_too_often(h: int, orders: int, choices: int) -> None:
    rng = np.random.default_rng(h + orders + choices)
    trials = 20_000 if h * orders * choices < 1_000 else 4_000
    found = np.zeros(trials, np.int64)
    for _ in range(orders):
        # The worst choices: lists that have nothing to do with each other.
        drawn = np.argsort(rng.random((trials, choices, h), dtype=np.float32), axis=-1)
        found += (drawn == np.arange(h)).sum(axis=-1).max(axis=-1)
    log10_p = {k: pvalue.matches(int(k), orders, choices) for k in np.unique(found)}
    seen = np.array([log10_p[k] for k in found])
    for alpha in (1e-2, 1e-3):
        rejected = int((seen <= np.log10(alpha)).sum())
        assert stats.binomtest(rejected, trials, alpha, alternative="greater").pvalue > 1e-3
    assert (seen < 0).any()


def test_what_cannot_be_is_refused() -> None:
    for wrong in ((-1, 1, 1), (1, 0, 1), (0, -1, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match="cannot be"):
            pvalue.matches(*wrong)
    assert pvalue.matches(0, 0) == 0.0
    assert pvalue.matches(10**6, 30, 60) < -1_000_000
