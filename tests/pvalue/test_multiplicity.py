"""Corrections against their definitions, and rank p-values as tests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spiritsafe.pvalue
from spiritsafe import pvalue

LOG10_PS = st.lists(st.one_of(st.floats(-40, 0), st.sampled_from([-3.0, -1.0, 0.0])), min_size=1, max_size=8)


def closed_testing(p: np.ndarray, tests: int) -> np.ndarray:
    """Holm by its definition: H_i falls when Bonferroni rejects every intersection of hypotheses that contains it."""
    everything = np.append(p, np.ones(tests - p.size))
    adjusted = np.zeros(p.size)
    for size in range(1, tests + 1):
        for members in itertools.combinations(range(tests), size):
            worth = min(1.0, size * everything[list(members)].min())
            for i in members:
                if i < p.size:
                    adjusted[i] = max(adjusted[i], worth)
    return adjusted


@given(log10_ps=LOG10_PS, more=st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_holm_is_the_closure_of_bonferroni(log10_ps: list[float], more: int) -> None:
    got = pvalue.holm(log10_ps, tests=len(log10_ps) + more)
    expected = closed_testing(10 ** np.array(log10_ps), len(log10_ps) + more)
    assert 10**got == pytest.approx(expected, rel=1e-9)
    assert (got <= 0).all()


@given(log10_ps=LOG10_PS, more=st.integers(0, 5), level=st.floats(-8, -0.1))
@settings(max_examples=80, deadline=None)
def test_benjamini_hochberg_steps_up(log10_ps: list[float], more: int, level: float) -> None:
    m = len(log10_ps) + more
    ordered = np.sort(log10_ps)
    passing = [i for i in range(ordered.size) if ordered[i] <= level + np.log10((i + 1) / m)]
    expected = passing[-1] + 1 if passing else 0
    assert (pvalue.benjamini_hochberg(log10_ps, tests=m) <= level + 1e-12).sum() == expected


def test_holm_beyond_floats_and_with_every_committed_key() -> None:
    got = pvalue.holm([-5000.0, -7.0, -6.5], tests=1_048_576)
    assert got == pytest.approx([-5000 + np.log10(1_048_576), -7 + np.log10(1_048_575), -6.5 + np.log10(1_048_574)])
    assert pvalue.holm([]).shape == (0,)


def test_bonferroni() -> None:
    assert pvalue.bonferroni(-7.0, 1000) == pytest.approx(-4.0)
    assert pvalue.bonferroni(-2.0, 1000) == 0.0
    assert pvalue.bonferroni(np.array([-7.0, -2.0]), 1000) == pytest.approx([-4.0, 0.0])
    assert pvalue.bonferroni(-7.0, 1) == -7.0


def test_holm_keeps_the_family_wise_error() -> None:
    rng = np.random.default_rng(2)
    trials, true_nulls = 20_000, 6
    log10_ps = np.log10(1 - rng.random((trials, 8)))
    log10_ps[:, true_nulls:] -= 9.0
    wrong = sum(bool((pvalue.holm(row)[:true_nulls] <= -2).any()) for row in log10_ps)
    assert 10 ** pvalue.binomial(trials, 1e-2, wrong) > 1e-4
    assert wrong > 0.5 * trials * 1e-2


@pytest.mark.parametrize("decoys", [9, 99, 999])
def test_rank_p_is_superuniform_with_and_without_ties(decoys: int) -> None:
    rng = np.random.default_rng(decoys)
    trials = 4_000
    for draw in (rng.random, lambda shape: rng.integers(0, 5, shape).astype(float)):
        statistics = draw((trials, decoys + 1))
        exceeding = (statistics[:, 1:] >= statistics[:, :1]).sum(axis=1)
        p = np.array([pvalue.rank(int(b), decoys) for b in exceeding])
        for level in (0.1, 0.01):
            assert 10 ** pvalue.binomial(trials, level, int((p <= level).sum())) > 1e-4


def test_rank_p_is_never_zero() -> None:
    assert pvalue.rank(0, 999) == 0.001
    assert pvalue.rank(999, 999) == 1.0
    assert pvalue.rank(0, 0) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: pvalue.rank(5, 4),
        lambda: pvalue.rank(-1, 4),
        lambda: pvalue.bonferroni(-3.0, 0),
        lambda: pvalue.holm([-1.0, -2.0], tests=1),
        lambda: pvalue.holm([0.5]),
        lambda: pvalue.benjamini_hochberg([float("nan")]),
        lambda: pvalue.benjamini_hochberg(np.zeros((2, 2)) - 1),
    ],
)
def test_wrong_input(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"decoys|test|log10"):
        wrong()  # type: ignore[operator]


def test_the_names_are_the_page_readers_import() -> None:
    assert spiritsafe.pvalue.__all__ == [
        "benjamini_hochberg",
        "binomial",
        "bonferroni",
        "clopper_pearson",
        "coin_evalue",
        "coin_process",
        "decibans",
        "from_evalues",
        "gamma",
        "gamma_sum",
        "holm",
        "matches",
        "merge_evalues",
        "rank",
        "rank_sum",
        "saddlepoint_bernoullis",
        "saddlepoint_exponentials",
        "tilted_evalue",
        "weighted_bernoullis",
        "weighted_exponentials",
    ]
