"""The tail of a sum of gammas: against arithmetic in 80 digits, numerical inversion, simulation, and its own bounds."""

from __future__ import annotations

import time

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe import pvalue


def two_keys(n: int, alpha: float, s: float) -> mp.mpf:
    """log10 P(α·Gamma(n) + (1−α)·Gamma(n) ≥ s) by partial fractions in enough digits to survive their cancellation."""
    with mp.workdps(40 + int(2.5 * n)):
        a, b = 1 / mp.mpf(alpha), 1 / (1 - mp.mpf(alpha))
        total = mp.mpf(0)
        for rate, other in ((a, b), (b, a)):
            # Residue at −rate of (a b)^n / ((t + a)^n (t + b)^n) · e^{ts}/(−t), term by term of (t + rate)^{-i}.
            poisson, tail = mp.exp(-rate * s), mp.exp(-rate * s)
            tails = [tail]
            for j in range(1, n):
                poisson *= rate * s / j
                tail += poisson
                tails.append(tail)
            for i in range(1, n + 1):
                j = n - i
                weight = (
                    mp.binomial(n + j - 1, j) * (-1) ** j * (other / (other - rate)) ** n * (rate / (other - rate)) ** j
                )
                total += weight * tails[i - 1]
        return mp.log(total) / mp.log(10)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.45])
@pytest.mark.parametrize("n", [1, 2, 5, 30, 100])
def test_two_keys_agree_with_high_precision(n: int, alpha: float) -> None:
    for z in (0.2, 1, 3, 6, 12, 40, 400):
        s = n + z * n**0.5
        got, reference = pvalue.gamma_sum([n, n], [alpha, 1 - alpha], s), two_keys(n, alpha, s)
        assert abs(got - reference) <= min(1e-9, 1e-9 * abs(reference)) + 1e-14, (z, got)


@pytest.mark.parametrize(("alpha", "depth"), [(0.1, 12), (0.1, 30), (0.2, 30)])
def test_a_moment_matched_gamma_overstates_the_evidence_and_this_does_not(alpha: float, depth: int) -> None:
    n = 100
    low, high = float(n), 20.0 * n
    for _ in range(60):
        s = 0.5 * (low + high)
        low, high = (s, high) if two_keys(n, alpha, s) > -depth else (low, s)
    second = alpha**2 + (1 - alpha) ** 2
    matched = pvalue.gamma(n / second, s / second)
    assert matched < -depth - 0.3
    assert pvalue.gamma_sum([n, n], [alpha, 1 - alpha], s) == pytest.approx(-depth, abs=1e-8)


@pytest.mark.parametrize("s", [60.0, 100.0, 150.0])
def test_three_scales_agree_with_numerical_inversion(s: float) -> None:
    shapes, scales = [6.0, 3.5, 2.0], [1.0, 3.0, 8.0]
    theta = 0.09  # the Bromwich line Re = θ, inside (0, 1/8)

    def integrand(y: mp.mpf) -> mp.mpf:
        t = mp.mpc(theta, y)
        log_moment = -mp.fsum(shape * mp.log(1 - scale * t) for shape, scale in zip(shapes, scales, strict=True))
        return (mp.exp(log_moment - t * s) / t).real

    with mp.workdps(25):
        reference = mp.log(mp.quad(integrand, [0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 20]) / mp.pi) / mp.log(10)
    assert pvalue.gamma_sum(shapes, scales, s) == pytest.approx(float(reference), abs=1e-8)


def test_two_scales_by_the_recursion_and_by_the_closed_form() -> None:
    """A third scale of negligible shape sends the same law down the general path."""
    for s in (120.0, 200.0, 600.0):
        closed = pvalue.gamma_sum([40, 40], [0.5, 2.0], s)
        assert pvalue.gamma_sum([40, 40, 1e-13], [0.5, 2.0, 1.0], s) == pytest.approx(closed, abs=1e-9)


def test_equal_scales_are_a_gamma() -> None:
    s = np.array([-1.0, 0.0, 3.0, 40.0, 4000.0])
    assert (pvalue.gamma_sum([4, 6, 0, 9], [2.0, 2.0, 5.0, 0.0], s) == pvalue.gamma(10, s / 2)).all()


def test_nearly_equal_scales_approach_it() -> None:
    for s in (20.0, 60.0, 300.0):
        assert pvalue.gamma_sum([10, 10], [1.0, 1.0 + 1e-9], s) == pytest.approx(pvalue.gamma(20, s), rel=1e-6)


def test_the_null_distribution_is_exact() -> None:
    rng = np.random.default_rng(3)
    n, alpha, trials = 30, 0.1, 20_000
    sums = alpha * rng.gamma(n, size=trials) + (1 - alpha) * rng.gamma(n, size=trials)
    grid = np.linspace(sums.min(), sums.max(), 400)  # rounded down: p-values too large by at most a grid step
    log10_p = pvalue.gamma_sum([n, n], [alpha, 1 - alpha], grid)[np.searchsorted(grid, sums, side="right") - 1]
    for level in (-1, -2, -3):
        rejected = int((log10_p <= level).sum())
        assert 10 ** pvalue.binomial(trials, 10.0**level, rejected) > 1e-4
        assert rejected > 0.5 * trials * 10.0**level


@given(
    shape=st.floats(0.2, 200),
    ratio=st.floats(1.01, 50),
    s=st.floats(0.01, 3000),
    step=st.floats(1e-4, 3),
)
@settings(max_examples=60, deadline=None)
def test_falls_with_the_sum_and_stays_below_chernoff(shape: float, ratio: float, s: float, step: float) -> None:
    here = pvalue.gamma_sum([shape, shape], [1.0, ratio], s)
    assert -np.inf < pvalue.gamma_sum([shape, shape], [1.0, ratio], s * (1 + step)) <= here <= 0.0
    whole = max(1, round(shape))
    weights = np.repeat([1.0, ratio], whole)
    assert pvalue.gamma_sum([whole, whole], [1.0, ratio], s) <= pvalue.weighted_exponentials(weights, s) + 1e-12


def test_long_sums_are_fast() -> None:
    started = time.process_time()
    shallow, deep = pvalue.gamma_sum([1e5, 1e5], [0.1, 0.9], np.array([1.01e5, 3e5]))
    assert time.process_time() - started < 1.0
    weights = np.repeat([0.1, 0.9], 100_000)
    assert shallow == pytest.approx(pvalue.saddlepoint_exponentials(weights, 1.01e5), abs=1e-3)
    assert deep == pytest.approx(pvalue.saddlepoint_exponentials(weights, 3e5), abs=1e-3)


def test_out_of_reach_is_a_bound_instead() -> None:
    value = pvalue.gamma_sum([2.0, 3.0], [1e-6, 1.0], 1e6)
    assert pvalue.gamma(3, 1e6) <= value <= pvalue.gamma(3, 1e6) + 7


@pytest.mark.parametrize(
    ("shapes", "scales", "s"),
    [([1, 2], [1], 1.0), ([1, -2], [1, 2], 1.0), ([1], [float("inf")], 1.0), ([0], [1], 1.0), ([1], [1], float("nan"))],
)
def test_wrong_input(shapes: list[float], scales: list[float], s: float) -> None:
    with pytest.raises(ValueError, match=r"shape|sum"):
        pvalue.gamma_sum(shapes, scales, s)
