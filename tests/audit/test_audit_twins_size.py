"""Twins as evidence: resemblance, how often innocents are found, and how often others are."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import coins_kit as kit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe.audit.tests._resemblance import Grams, resemblance

# Resemblance


def test_resemblance_is_fixed() -> None:
    """Golden vectors: a second verifier has to come to the same numbers."""
    assert Grams("a cat sat").like(Grams("a  cat\nsat ")) == 1.0
    assert Grams("").like(Grams("")) == Grams("abc").like(Grams("")) == 0.0
    assert Grams("abcdef").like(Grams("abcxyz")) == pytest.approx((3 / 6 + 2 / 5 + 1 / 4) / 6, abs=1e-15)
    assert resemblance(["the cat sat on the mat", "no"], ["the cat sat", "on a mat", "日本語"]) == [
        0.6011415558648394,
        0.2674297924297924,
        0.0,
    ]


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_resemblance_is_a_plain_mean_of_f1(a: str, b: str) -> None:
    x, y, total = " ".join(a.split()), " ".join(b.split()), 0.0
    for n in range(1, 7):
        left, right = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (x, y))
        size = left.total() + right.total()
        total += 2 * (left & right).total() / size if size else 0.0
    assert Grams(a).like(Grams(b)) == Grams(b).like(Grams(a)) == total / 6


# Size and power


@pytest.mark.parametrize("texts", ["alike", "repetitive", "very different lengths", "first always preferred"])
def test_innocents_are_found_no_more_often_than_alpha(tmp_path: Path, texts: str) -> None:
    """A trial is one suspect's answers to 48 pairs under fresh coins. One in six pairs is one text again and again."""
    n, trials, rng = 48, 2000, np.random.default_rng(len(texts))
    pairs = [
        {
            "alike": (f"the answer is {i}", f"the answer is {i}."),
            "repetitive": (("no " * (i % 5 + 1)).strip(), ("no " * (i % 5 + 2)).strip()),
            "very different lengths": ("yes", "well, " * 60 + "no"),
            "first always preferred": ("yes, always", "no, never"),
        }[texts]
        for i in range(n)
    ]
    scores = [(rng.normal(-2, 1), rng.normal(-2, 1)) for _ in range(n)]
    if texts == "first always preferred":
        scores = [(-1.0, -2.0)] * n
    scores[::6] = [scores[0]] * len(scores[::6])
    records = [
        kit.record("twins", f"req_{i}", {"first": [a * 4, 4], "second": [b * 4, 4]}) for i, (a, b) in enumerate(scores)
    ]
    path = kit.write_lines(tmp_path / "t.jsonl", [kit.pair_line(i, *pair, 0) for i, pair in enumerate(pairs)])
    tests = [kit.twins(path, sequential=early) for early in (False, True)]
    found = np.array([[test.redrawn(rng).judge(records).log10_p for test in tests] for _ in range(trials)])
    for alpha in (1e-2, 1e-3):
        for hits in (found <= math.log10(alpha)).sum(axis=0):
            assert kit.at_most(int(hits), trials, alpha), (alpha, hits)
    assert (found[:, 0] <= -1).sum() > 0.02 * trials  # it is a test, not a refusal to say anything


def test_by_text_innocents_are_found_no_more_often_than_alpha(tmp_path: Path) -> None:
    """The suspect writes as the teacher does (same phrases), not what was released."""
    n, trials, rng = 12, 1000, np.random.default_rng(5)
    words = ["river", "stone", "slowly", "the", "the", "of", "valley", "and", "water", "carves"]

    def text() -> str:
        return " ".join(rng.choice(words, rng.integers(3, 12)))

    pairs = [(text(), text()) for _ in range(n)]
    records = [kit.record("twins", f"req_{i}", {"replies": [text()]}) for i in range(n)]
    lines = [kit.pair_line(i, *pair, 0) for i, pair in enumerate(pairs)]
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", lines), by="text")
    found = [test.redrawn(rng).judge(records).log10_p for _ in range(trials)]
    for alpha in (1e-2, 1e-3):
        assert kit.at_most(int((np.array(found) <= math.log10(alpha)).sum()), trials, alpha)
    assert (np.array(found) <= -1).sum() > 0.02 * trials


@pytest.mark.parametrize(("share", "pairs"), [(0.6, 330), (0.79, 40)])
def test_power(tmp_path: Path, share: float, pairs: int) -> None:
    """A suspect that prefers the released reply in that share of pairs reaches 1e-2 in four of five trials."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(30):
        coins = [int(coin) for coin in rng.integers(0, 2, pairs)]
        test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", kit.some_pairs(pairs, coins=coins)))
        records = []
        for i, coin in enumerate(coins):
            better = coin if rng.random() < share else 1 - coin
            got = {"first": [-1.0 - better, 1], "second": [-2.0 + better, 1]}
            records.append(kit.record("twins", f"req_{i}", got))
        hits += test.judge(records).log10_p <= -2
    assert hits >= 24


def test_a_biased_coin_shows_on_innocents(tmp_path: Path) -> None:
    """An operator who releases the likelier reply makes every model guilty, the controls too: that is their purpose."""
    rng = np.random.default_rng(9)
    scores = rng.normal(-2, 1, (100, 2))
    coins = [int(b > a) for a, b in scores]
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", kit.some_pairs(100, coins=coins)))
    control = scores + rng.normal(0, 1, scores.shape)  # another model of the same language
    records = [kit.record("twins", f"req_{i}", {"first": [a, 1], "second": [b, 1]}) for i, (a, b) in enumerate(control)]
    assert test.judge(records).log10_p < -4
