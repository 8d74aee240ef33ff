"""Chernoff bounds: never below an exact tail, valid as tests, close to it where it can be; saddlepoints: close."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from spiritsafe import pvalue

WEIGHTS = npst.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 8, allow_subnormal=False))


def every_sum(weights: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
    """All sums of a few weighted Bernoullis, and their probabilities."""
    sums, chances = np.zeros(1), np.ones(1)
    for w in weights:
        sums, chances = np.concatenate([sums, sums + w]), np.concatenate([chances * (1 - p), chances * p])
    return sums, chances


def test_exponentials_lie_above_the_exact_tail_by_little() -> None:
    for n in (1, 10, 100, 1_000):
        for z in (0.5, 2, 6, 20, 60):
            s = n + z * n**0.5
            bound, exact = pvalue.weighted_exponentials(np.ones(n), s), pvalue.gamma(n, s)
            assert exact < bound <= 0.0
            assert bound - exact < 0.5 + 0.5 * np.log10(2 * np.pi) + np.log10(z + 1)


def test_two_weights_lie_above_the_exact_tail() -> None:
    for s in (130.0, 200.0, 900.0):
        bound = pvalue.weighted_exponentials(np.repeat([0.1, 0.9], 100), s)
        assert pvalue.gamma_sum([100, 100], [0.1, 0.9], s) < bound


def test_bernoullis_lie_above_the_exact_tail() -> None:
    rng = np.random.default_rng(0)
    for p in (0.25, 0.5, 0.9):
        weights = rng.gamma(1.0, size=14)
        sums, chances = every_sum(weights, p)
        for s in np.quantile(sums, [0.1, 0.5, 0.9, 0.99, 0.9999]):
            assert 10 ** pvalue.weighted_bernoullis(weights, p, s) >= chances[sums >= s].sum() * (1 - 1e-9)
    for k in (30, 60, 99, 100):
        assert pvalue.binomial(100, 0.25, k) <= pvalue.weighted_bernoullis(np.ones(100), 0.25, k) + 1e-9


def test_every_bernoulli_hit_is_exact() -> None:
    weights = np.array([0.3, 0.1, 7.0, 0.0, 1e-4])
    assert pvalue.weighted_bernoullis(weights, 0.2, weights.sum()) == pytest.approx(4 * np.log10(0.2))
    assert pvalue.weighted_bernoullis(weights, 0.2, weights.sum() * (1 + 1e-12)) == pytest.approx(4 * np.log10(0.2))


@given(weights=WEIGHTS, s=st.floats(0, 500), step=st.floats(1e-3, 3))
@settings(max_examples=80, deadline=None)
def test_exponentials_fall_with_the_sum(weights: np.ndarray, s: float, step: float) -> None:
    if weights.any():
        further, here = pvalue.weighted_exponentials(weights, np.array([s + step, s]))
        assert -np.inf < further <= here + 1e-9 and here <= 0.0
        if s <= weights.sum():
            assert here == 0.0


@given(weights=WEIGHTS, p=st.floats(0.01, 0.99), share=st.floats(0, 0.99), step=st.floats(0.001, 0.01))
@settings(max_examples=80, deadline=None)
def test_bernoullis_fall_with_the_sum(weights: np.ndarray, p: float, share: float, step: float) -> None:
    most = float(weights.sum())
    further, here = pvalue.weighted_bernoullis(weights, p, most * np.array([share + step, share]))
    assert -np.inf < further <= here + 1e-9 and here <= 0.0


@pytest.mark.parametrize("law", ["exponential", "bernoulli"])
def test_the_null_is_never_rejected_too_often(law: str) -> None:
    rng = np.random.default_rng(7)
    weights, trials = rng.gamma(0.5, size=60), 4_000
    if law == "exponential":
        log10_p = pvalue.weighted_exponentials(weights, rng.standard_exponential((trials, 60)) @ weights)
    else:
        log10_p = pvalue.weighted_bernoullis(weights, 0.25, (rng.random((trials, 60)) < 0.25) @ weights)
    for level in (-1, -2, -3):
        assert 10 ** pvalue.binomial(trials, 10.0**level, int((log10_p <= level).sum())) > 1e-4
    assert (log10_p <= -1).sum() > 0.004 * trials  # a bound costs a decade, not two


def test_the_saddlepoint_is_close_for_display() -> None:
    for s in (101.0, 130.0, 200.0, 600.0):
        assert pvalue.saddlepoint_exponentials(np.ones(100), s) == pytest.approx(pvalue.gamma(100, s), abs=2e-4)
    assert pvalue.saddlepoint_exponentials(np.ones(100), 90.0) == 0.0
    rng = np.random.default_rng(1)
    weights = rng.gamma(1.0, size=16)
    sums, chances = every_sum(weights, 0.25)
    for s in np.quantile(sums, [0.9, 0.99, 0.9999]):
        exact = np.log10(chances[sums >= s].sum())
        assert pvalue.saddlepoint_bernoullis(weights, 0.25, float(s)) == pytest.approx(exact, abs=0.1)


def test_a_tiny_weight_beside_large_ones_weakens_nothing() -> None:
    weights, with_tiny = np.ones(100), np.append(np.ones(100), 1e-12)
    alone = pvalue.weighted_bernoullis(weights, 0.25, 60.0)
    assert pvalue.weighted_bernoullis(with_tiny, 0.25, 60.0) == pytest.approx(alone, abs=1e-6)
    alone = pvalue.weighted_exponentials(weights, 300.0)
    assert pvalue.weighted_exponentials(with_tiny, 300.0) == pytest.approx(alone, abs=1e-6)


def test_no_weight_says_nothing() -> None:
    assert pvalue.weighted_exponentials(np.zeros(3), 0.0) == 0.0
    assert pvalue.weighted_bernoullis(np.array([]), 0.5, 0.0) == 0.0
    assert pvalue.saddlepoint_bernoullis(np.zeros(3), 0.5, 0.0) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: pvalue.weighted_exponentials(np.array([1.0, -1.0]), 1.0),
        lambda: pvalue.weighted_exponentials(np.array([1.0, np.inf]), 1.0),
        lambda: pvalue.weighted_exponentials(np.ones(2), float("nan")),
        lambda: pvalue.weighted_exponentials(np.zeros(2), 1.0),
        lambda: pvalue.weighted_bernoullis(np.ones(2), 0.5, 2.1),
        lambda: pvalue.weighted_bernoullis(np.ones(2), 1.5, 1.0),
    ],
)
def test_wrong_input(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"weights|finite|probability"):
        wrong()  # type: ignore[operator]
