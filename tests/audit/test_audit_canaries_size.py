"""Canaries as evidence: the exact law of ranks, how often innocents are found, and how often others are."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path

import coins_kit as kit
import numpy as np
import pytest

from spiritsafe import pvalue

# The law of ranks


def law(sizes: list[int]) -> dict[int, Fraction]:
    """P(decibans sum to s), by trying all outcomes."""
    found: dict[int, Fraction] = {}
    for ranks in itertools.product(*(range(1, size + 1) for size in sizes)):
        total = sum(map(pvalue.decibans, ranks, sizes))
        found[total] = found.get(total, Fraction()) + Fraction(1, math.prod(sizes))
    return found


def test_decibans() -> None:
    assert [pvalue.decibans(rank, 1000) for rank in (1, 2, 3, 10, 100, 101, 794, 795, 1000)] == [
        30,
        26,
        25,
        20,
        10,
        9,
        1,
        0,
        0,
    ]
    for size in (2, 7, 10, 1000):
        for rank in range(1, size + 1):
            assert pvalue.decibans(rank, size) == math.floor(10 * math.log10(size / rank) + 1e-9)
    for rank in (0, 4):
        with pytest.raises(ValueError, match="no rank"):
            pvalue.decibans(rank, 3)


@pytest.mark.parametrize("sizes", [[5], [1000], [2, 2, 2, 2, 2], [4, 7, 10], [3, 50, 20]])
def test_the_sum_of_ranks_is_counted_exactly(sizes: list[int]) -> None:
    chances = law(sizes)
    rng = np.random.default_rng(0)
    for _ in range(40):
        ranks = [int(rng.integers(1, size + 1)) for size in sizes]
        seen = sum(map(pvalue.decibans, ranks, sizes))
        exact = sum(chance for total, chance in chances.items() if total >= seen)
        assert pvalue.rank_sum(ranks, sizes) == pytest.approx(math.log10(exact), abs=1e-12)
    for alpha in (Fraction(1, 20), Fraction(1, 100), Fraction(1, 1000)):
        tails = {s: sum(c for t, c in chances.items() if t >= s) for s in chances}
        assert sum(chances[s] for s, tail in tails.items() if tail <= alpha) <= alpha  # super-uniform


def test_rank_sum_golden() -> None:
    assert pvalue.rank_sum([], []) == 0.0
    assert pvalue.rank_sum([1], [1000]) == pytest.approx(-3)
    assert pvalue.rank_sum([1] * 5, [1000] * 5) == pytest.approx(-15)
    assert pvalue.rank_sum([1] * 10, [4] * 10) == pytest.approx(10 * math.log10(0.25))
    assert (
        pvalue.gamma(5, 5 * math.log(1000)) > -10.2 and pvalue.gamma(10, 10 * math.log(4)) > -1
    )  # what Fisher's gives
    assert pvalue.rank_sum([1] * 60, [10_000] * 60) == pytest.approx(-240)
    with pytest.raises(ValueError, match=r"zip|argument"):
        pvalue.rank_sum([1], [2, 3])


# Size and power


@pytest.mark.parametrize("scores", ["all different", "many ties", "a favourite"])
def test_innocents_are_found_no_more_often_than_alpha(tmp_path: Path, scores: str) -> None:
    sizes, trials, rng = (2, 8, 8, 30, 100, 100), 3000, np.random.default_rng(len(scores))
    some = [kit.opened_canary(i, 0, size) for i, size in enumerate(sizes)]
    test = kit.canaries(kit.write_lines(tmp_path / "c.jsonl", some))
    records = []
    for i, size in enumerate(sizes):
        values = rng.normal(-2, 1, size)
        if scores == "many ties":
            values = np.round(values)
        if scores == "a favourite":
            values[size // 2] = 0.0
        got = {"logprobs": [[float(value), 1] for value in values]}
        records.append(kit.record("canaries", f"can_{i}", got))
    found = np.array([test.redrawn(rng).judge(records).log10_p for _ in range(trials)])
    for alpha in (1e-1, 1e-2, 1e-3):
        assert kit.at_most(int((found <= math.log10(alpha)).sum()), trials, alpha), alpha
    assert (found <= -1).sum() > 0.01 * trials


def test_by_text_innocents_are_found_no_more_often_than_alpha(tmp_path: Path) -> None:
    """Replies that repeat sealed answers and templates of the canaries, chosen without the draw."""
    trials, rng = 1000, np.random.default_rng(4)
    some = [kit.opened_canary(i, 0, 9) for i in range(2)]
    test = kit.canaries(kit.write_lines(tmp_path / "c.jsonl", some), by="text")
    records = [kit.record("canaries", f"can_{i}", {"replies": [f"answer c of {i}"]}) for i in range(2)]
    found = np.array([test.redrawn(rng).judge(records).log10_p for _ in range(trials)])
    for alpha in (1e-1, 1e-2, 1e-3):
        assert kit.at_most(int((found <= math.log10(alpha)).sum()), trials, alpha), alpha
    assert found.min() < -1


def test_power(tmp_path: Path) -> None:
    """Five canaries of 100, each known a little: the published answer two deviations likelier. Found at 1e-3."""
    rng, hits = np.random.default_rng(1), 0
    test = kit.canaries(kit.write_lines(tmp_path / "c.jsonl", [kit.opened_canary(i, 0, 100) for i in range(5)]))
    for _ in range(100):
        records = []
        for i in range(5):
            values = rng.normal(-3, 1, 100)
            values[0] += 2
            records.append(kit.record("canaries", f"can_{i}", {"logprobs": [[float(v), 1] for v in values]}))
        hits += test.judge(records).log10_p <= -3
    assert hits >= 80
