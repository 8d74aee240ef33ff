"""Bets on fair coins: the closed form, no more than alpha ever reaching 1/alpha, and what biased coins bring."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe import pvalue


def exact(n: int, w: int) -> Fraction:
    return Fraction(sum(math.comb(n + 1, j) for j in range(w + 1)), (n + 1) * math.comb(n, w))


def log10(value: Fraction) -> float:
    return math.log10(value.numerator) - math.log10(value.denominator)


@pytest.mark.parametrize(
    ("n", "wins", "e"),
    [(0, 0, "1"), (1, 1, "3/2"), (1, 0, "1/2"), (2, 1, "2/3"), (3, 3, "15/4"), (10, 9, "1018/55")],
)
def test_golden(n: int, wins: int, e: str) -> None:
    assert exact(n, wins) == Fraction(e)
    assert pvalue.coin_evalue(n, wins) == pytest.approx(log10(Fraction(e)), abs=1e-12)


@settings(deadline=None)
@given(st.integers(0, 800), st.floats(0, 1))
def test_the_closed_form_is_the_exact_one(n: int, share: float) -> None:
    wins = round(share * n)
    assert pvalue.coin_evalue(n, wins) == pytest.approx(log10(exact(n, wins)), abs=1e-9)


def test_where_no_float_holds_it() -> None:
    # All of a million: 2^(n+1) / (n+1), less a tail of 2^-(n+1).
    n = 1_000_000
    assert pvalue.coin_evalue(n, n) == pytest.approx((n + 1) * math.log10(2) - math.log10(n + 1), rel=1e-12)


def test_it_is_a_product_of_bets_fixed_before_the_coin() -> None:
    for n in range(12):
        for w in range(n + 1):
            win, loss, before = exact(n + 1, w + 1), exact(n + 1, w), exact(n, w)
            bet = win / before - 1
            assert 0 <= bet < 1 and loss / before == 1 - bet


def test_a_pair_counted_as_lost_never_helps() -> None:
    for n in range(40):
        for w in range(n + 1):
            assert exact(n + 1, w) <= exact(n, w)
            assert w == 0 or exact(n, w - 1) <= exact(n, w)


@pytest.mark.parametrize("alpha", [0.05, 1e-2, 1e-3])
def test_whoever_stops_when_it_looks_best_is_wrong_no_more_often_than_alpha(alpha: float) -> None:
    """Exactly, over all sequences of 600 fair coins: the chance that the process ever reaches 1/alpha."""
    longest, crossed = 600, 0.0
    alive = np.ones(1)  # P(w wins so far, not yet crossed)
    for n in range(1, longest + 1):
        alive = 0.5 * (np.append(alive, 0.0) + np.insert(alive, 0, 0.0))
        over = pvalue.coin_evalue(np.full(n + 1, n), np.arange(n + 1)) >= -math.log10(alpha)
        crossed += float(alive[over].sum())
        alive[over] = 0.0
    assert 0.6 * alpha < crossed <= alpha


def test_the_same_coins_stopped_on_their_exact_tail_would_accuse_many() -> None:
    """Why a plan that stops early must not use the fixed-size test: the test above can fail."""
    alpha, longest, crossed = 1e-2, 2000, 0.0
    alive = np.ones(1)
    for n in range(1, longest + 1):
        alive = 0.5 * (np.append(alive, 0.0) + np.insert(alive, 0, 0.0))
        over = pvalue.binomial(n, 0.5, np.arange(n + 1, dtype=np.float64)) <= math.log10(alpha)
        crossed += float(alive[over].sum())
        alive[over] = 0.0
    assert crossed > 4 * alpha


@pytest.mark.parametrize(("share", "needed"), [(0.6, 650), (0.7, 145), (0.8, 60), (0.94, 25)])
def test_power(share: float, needed: int) -> None:
    """Pairs until 1/alpha = 1,000, in four of five runs."""
    rng = np.random.default_rng(7)
    coins = rng.random((400, 2 * needed)) < share
    stops = [np.argmax(np.append(pvalue.coin_process(row), np.inf) >= 3) for row in coins]
    assert np.quantile(stops, 0.8) <= needed


def test_the_process_is_the_closed_form_along_the_way() -> None:
    coins = np.random.default_rng(1).integers(0, 2, 200)
    process = pvalue.coin_process(coins)
    assert process.shape == (200,)
    assert process[99] == pvalue.coin_evalue(100, int(coins[:100].sum()))
    assert pvalue.coin_process([]).shape == (0,)


def test_p_from_e() -> None:
    assert pvalue.from_evalues([0.1, 4.0, -2.0]) == -4.0
    assert pvalue.from_evalues(3.0) == -3.0
    assert pvalue.from_evalues(-0.5) == pvalue.from_evalues([]) == 0.0
    assert pvalue.from_evalues([-math.inf, 2.0]) == -2.0


def test_merging() -> None:
    assert pvalue.merge_evalues([1.0, 2.0, -0.5], independent=True) == pytest.approx(2.5)
    assert pvalue.merge_evalues([2.0, -math.inf], independent=False) == pytest.approx(2 - math.log10(2))
    assert pvalue.merge_evalues([400.0, 400.0], independent=False) == pytest.approx(400)
    assert pvalue.merge_evalues([], independent=True) == pvalue.merge_evalues([], independent=False) == 0.0


def test_the_merged_ones_are_e_values() -> None:
    """Their mean under fair coins is at most 1: exactly 1 for these."""
    n = 6
    weights = [math.comb(n, w) / 2**n for w in range(n + 1)]
    values = [pvalue.coin_evalue(n, w) for w in range(n + 1)]
    pairs = [
        (p * q, [a, b]) for p, a in zip(weights, values, strict=True) for q, b in zip(weights, values, strict=True)
    ]
    for independent in (True, False):
        total = sum(p * 10 ** pvalue.merge_evalues(both, independent=independent) for p, both in pairs)
        assert total == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "wins"), [(1, 2), (-1, 0), (3, -1), (3, 1.5), (math.nan, 0), (math.inf, 1)])
def test_impossible_counts_are_refused(n: float, wins: float) -> None:
    with pytest.raises(ValueError, match="wins"):
        pvalue.coin_evalue(n, wins)  # type: ignore[call-overload]


def test_wrong_shapes_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match="counts"):
        pvalue.coin_evalue(np.arange(3), np.arange(2))
    with pytest.raises(ValueError, match="wins and losses"):
        pvalue.coin_process([0, 2])
    with pytest.raises(ValueError, match="not a number"):
        pvalue.from_evalues([math.nan])
    with pytest.raises(ValueError, match="list of numbers"):
        pvalue.merge_evalues([math.nan], independent=True)


@pytest.mark.parametrize("p", [0.5, 0.79, 0.02])
def test_clopper_pearson_covers(p: float) -> None:
    for n in (1, 10, 57):
        covered = 0.0
        for k in range(n + 1):
            low, high = pvalue.clopper_pearson(n, k)
            covered += math.comb(n, k) * p**k * (1 - p) ** (n - k) * (low <= p <= high)
        assert 0.95 <= covered <= 1 + 1e-9


def test_clopper_pearson_golden() -> None:
    low, high = pvalue.clopper_pearson(10, 3)
    assert (round(low, 4), round(high, 4)) == (0.0667, 0.6525)
    assert pvalue.clopper_pearson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        pvalue.clopper_pearson(2, 3)
