"""Mixtures of tilted martingales: mean 1 whatever stops them."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from spiritsafe import pvalue

GAMMA = 0.25
TILTS = [4.0 * 2.0 ** (-j / 2) for j in range(16)]
MGFS = [math.log1p(GAMMA * math.expm1(tilt)) for tilt in TILTS]


@pytest.mark.parametrize("stop", ["never", "first green", "ahead"])
def test_its_mean_is_one_at_any_stopping_rule(stop: str) -> None:
    """Exactly, by all paths of ten coins."""
    mean = 0.0
    for path in product((0, 1), repeat=10):
        n = next(
            (
                at
                for at in range(1, 11)
                if (stop == "first green" and path[at - 1]) or (stop == "ahead" and sum(path[:at]) > 0.5 * at)
            ),
            10,
        )
        chance = math.prod(GAMMA if green else 1 - GAMMA for green in path)
        mean += chance * 10.0 ** pvalue.tilted_evalue(n, sum(path[:n]), TILTS, MGFS)
    assert mean == pytest.approx(1.0, abs=1e-12)


def test_it_grows_with_the_sum_and_costs_about_two_decades() -> None:
    n = 10_000
    for log10_p in (-3.0, -10.0, -30.0):
        k = next(k for k in range(2500, n) if pvalue.binomial(n, GAMMA, k) <= log10_p)
        here = pvalue.from_evalues(pvalue.tilted_evalue(n, k, TILTS, MGFS))
        assert log10_p < here < log10_p + 2.6
        assert pvalue.from_evalues(pvalue.tilted_evalue(n, k + 1, TILTS, MGFS)) < here


def test_stopping_when_ahead_does_not_help() -> None:
    """Exponential scores, looked at after every one of 400: never above nominal."""
    tilts = [0.875 * 2.0 ** (-j / 2) for j in range(16)]
    mgfs = [-math.log1p(-tilt) for tilt in tilts]
    random = np.random.default_rng(0)
    sums = random.exponential(size=(2000, 400)).cumsum(1)
    paths = np.asarray(tilts)[:, None, None] * sums - np.asarray(mgfs)[:, None, None] * np.arange(1, 401)
    best = (np.logaddexp.reduce(paths, 0) - math.log(16)).max(1) / math.log(10)
    for alpha in (1e-2, 1e-3):
        hits = int((best >= -math.log10(alpha)).sum())
        assert hits <= 2000 * alpha or pvalue.binomial(2000, alpha, hits) > -6


def test_nothing_seen_is_no_evidence_and_bad_tilts_are_refused() -> None:
    assert pvalue.tilted_evalue(0, 0.0, TILTS, MGFS) == 0.0
    for tilts, mgfs in (([], []), ([0.0], [0.0]), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="tilts"):
            pvalue.tilted_evalue(3, 1.0, tilts, mgfs)
