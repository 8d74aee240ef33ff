"""Binomial and gamma tails against 50-digit arithmetic, as laws, and as tests that reject no more than they say."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe import pvalue


def binomial_reference(n: int, p: float, k: int) -> mp.mpf:
    with mp.workdps(50):
        exact_p = mp.mpf(p)
        odds = exact_p / (1 - exact_p)
        total = term = mp.mpf(1)
        for j in range(k, n):
            term *= odds * (n - j) / (j + 1)
            total += term
            if term < total * mp.mpf(10) ** -30:
                break
        choose = mp.loggamma(n + 1) - mp.loggamma(k + 1) - mp.loggamma(n - k + 1)
        return (choose + k * mp.log(exact_p) + (n - k) * mp.log(1 - exact_p) + mp.log(total)) / mp.log(10)


def gamma_reference(n: float, s: float) -> mp.mpf:
    with mp.workdps(50):
        return mp.log(mp.gammainc(n, s, regularized=True)) / mp.log(10)


def close(got: float, reference: mp.mpf, of_p: float = 1e-9) -> bool:
    return abs(got - reference) <= min(1e-9 * abs(reference) + 1e-15, of_p)


SIZES = [(n, p) for n in (1, 2, 5, 25, 100, 1_000, 10_000, 100_000) for p in (0.5, 0.25, 0.01, 0.9, 1 / 3)]


@pytest.mark.parametrize(("n", "p"), [*SIZES, (1_000_000_000, 0.25)])
def test_binomial_agrees_with_high_precision(n: int, p: float) -> None:
    deviations = [20, 33, 34, 60, 100, 300] if n > 1e6 else [-1, 0.5, 3, 6, 10, 20, 33, 34, 40, 60, 100, 300]
    for z in deviations:
        k = round(n * p + z * (n * p * (1 - p)) ** 0.5)
        if 1 <= k <= n:
            assert close(pvalue.binomial(n, p, k), binomial_reference(n, p, k)), (z, k)
    assert close(pvalue.binomial(n, p, n), n * mp.log(p) / mp.log(10), of_p=1e-6)


@pytest.mark.parametrize("n", [0.3, 1, 1.5, 5, 30, 100, 1_000, 10_000])
def test_gamma_agrees_with_high_precision(n: float) -> None:
    for z in [-0.5, 0.5, 3, 10, 20, 34, 38, 60, 100, 300, 1_000]:
        s = n + z * n**0.5
        assert s <= 0 or close(pvalue.gamma(n, s), gamma_reference(n, s)), (z, s)


def test_depths_no_float_reaches() -> None:
    assert pvalue.binomial(332_193, 0.5, 332_193) == pytest.approx(332_193 * np.log10(0.5), rel=1e-14)
    assert pvalue.gamma(1, 230_258.5) == pytest.approx(-230_258.5 / np.log(10), rel=1e-14)


def test_nothing_seen_says_nothing() -> None:
    for value in (pvalue.binomial(0, 0.5, 0), pvalue.binomial(9, 0.5, 0), pvalue.binomial(9, 0.5, -3)):
        assert value == 0.0
    for value in (pvalue.gamma(0, 0), pvalue.gamma(9, 0), pvalue.gamma(9, -3), pvalue.gamma(1e6, 1e-9)):
        assert value == 0.0 and not np.signbit(value)


def test_an_array_gives_an_array_and_a_number_a_float() -> None:
    table = pvalue.binomial(40, 0.25, np.arange(41.0).reshape(1, 41))
    assert table.shape == (1, 41)
    assert [pvalue.binomial(40, 0.25, k) for k in range(41)] == table[0].tolist()
    assert type(pvalue.binomial(40, 0.25, 12)) is float and type(pvalue.gamma(3, np.float64(2))) is float
    assert pvalue.gamma(3, np.array([])).shape == (0,)
    assert pvalue.binomial(40, 0.25, 11.2) == pvalue.binomial(40, 0.25, 12)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: pvalue.binomial(10, 0.5, 11),
        lambda: pvalue.binomial(10, 0.5, float("nan")),
        lambda: pvalue.binomial(10, 1.0, 3),
        lambda: pvalue.binomial(-1, 0.5, 0),
        lambda: pvalue.gamma(-1, 3.0),
        lambda: pvalue.gamma(3, float("inf")),
        lambda: pvalue.gamma(0, 1.0),
    ],
)
def test_what_cannot_have_been_seen_is_an_error(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"probability|trials|sum|finite"):
        wrong()  # type: ignore[operator]


@given(n=st.integers(1, 10**6), p=st.floats(0.001, 0.999), data=st.data())
@settings(max_examples=150, deadline=None)
def test_binomial_falls_with_every_success(n: int, p: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    more, fewer = pvalue.binomial(n, p, k), pvalue.binomial(n, p, k - 1)
    assert -np.inf < more <= fewer <= 0.0


@given(n=st.floats(0.5, 1e6), s=st.floats(0, 1e6), step=st.floats(1e-6, 10))
@settings(max_examples=150, deadline=None)
def test_gamma_falls_with_the_sum(n: float, s: float, step: float) -> None:
    here, further = pvalue.gamma(n, s), pvalue.gamma(n, s * (1 + step))
    assert -np.inf < further <= here <= 0.0


@given(n=st.integers(1, 400), p=st.floats(0.05, 0.95), data=st.data())
@settings(max_examples=100, deadline=None)
def test_binomial_tails_of_hits_and_misses_are_complements(n: int, p: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    hits, misses = pvalue.binomial(n, p, k), pvalue.binomial(n, 1 - p, n - k + 1)
    assert 10**hits + 10**misses == pytest.approx(1.0, abs=1e-11)


def test_binomial_p_values_are_superuniform_exactly() -> None:
    """Not by simulation: the probability of every rejection region, summed."""
    for n, p in [(25, 0.25), (60, 0.5), (300, 0.25), (900, 0.5)]:
        k = np.arange(n + 1.0)
        log10_p = pvalue.binomial(n, p, k)
        density = 10**log10_p - np.append(10 ** log10_p[1:], 0.0)
        for level in (-1, -2, -3, -6):
            assert density[log10_p <= level].sum() <= 10.0**level * (1 + 1e-9)


def test_gamma_p_values_are_uniform() -> None:
    sums = np.random.default_rng(5).standard_exponential((200_000, 40)).sum(axis=1)
    log10_p = pvalue.gamma(40, sums)
    for level in (-1, -2, -3):
        rejected = int((log10_p <= level).sum())
        assert 1e-4 < 10 ** pvalue.binomial(200_000, 10.0**level, rejected) < 1 - 1e-4
