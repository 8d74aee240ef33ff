"""Entropy weighting: valid whatever the weights, better where entropy varies."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from marked import key_set
from spiritsafe import pvalue
from spiritsafe.watermark._entropy import entropy_weights, weighted_log10_tail
from spiritsafe.watermark._native import NativeDetector

F64 = np.ndarray


def letters(name: str, length: int = 500) -> np.ndarray:
    raw = (Path(sysconfig.get_path("stdlib")) / name).read_bytes()[:length]
    return np.frombuffer(raw, np.uint8).astype(np.uint32)


def following(ids_T: np.ndarray) -> F64:
    """Entropy (T,) in nats of the letter after each letter, counted in the text itself: a model that knows no key."""
    counts = np.zeros((256, 256))
    np.add.at(counts, (ids_T[:-1], ids_T[1:]), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1)
    return np.concatenate([[0.0], entropy[ids_T[:-1]]]) + 0.0


@pytest.mark.parametrize(("scheme", "kind", "p"), [("gumbel-dual", "exponential", None), ("kgw", "bernoulli", 0.25)])
@pytest.mark.parametrize("text", ["LICENSE.txt", "argparse.py"])
def test_the_null_is_never_rejected_too_often(text: str, scheme: str, kind: str, p: float | None) -> None:
    """One trial = one document under a fresh key."""
    ids = letters(text)
    trials = 300 if kind == "exponential" else 600
    values = []
    for seed in range(trials):
        detector = NativeDetector(key_set(seed, scheme=scheme))
        reading = detector.read(ids, 0)
        reading = reading.take(np.isin(np.arange(len(reading.inputs)), np.unique(reading.inputs, return_index=True)[1]))
        scores = detector.scores(reading, 0)
        weights = entropy_weights(following(ids)[reading.positions])
        values.append(weighted_log10_tail(kind, scores.values[scores.counted], weights[scores.counted], p))  # type: ignore[arg-type]
    for level in (-1, -2, -3):
        rejected = int((np.array(values) <= level).sum())
        assert 10 ** pvalue.binomial(trials, 10.0**level, rejected) > 1e-4
    least = 0.8 if kind == "exponential" else 0.02  # exact, and a bound
    assert (np.array(values) <= -1).sum() > least * 0.1 * trials


def marked_scores(rng: np.random.Generator, n: int, certain: float, kind: str) -> tuple[F64, F64]:
    """Scores and entropies (n,) of marked text: most tokens all but certain, the others one of eight."""
    free = rng.random(n) >= certain
    if kind == "exponential":  # the winner of a race of equals has the largest of eight uniforms
        scores = np.where(free, -np.log1p(-(rng.random(n) ** (1 / 8))), rng.standard_exponential(n))
    else:  # a quarter green, odds × e^2
        scores = (rng.random(n) < np.where(free, 0.711, 0.25)).astype(float)
    return scores, np.where(free, np.log(8), 0.02)


@pytest.mark.parametrize(("kind", "p"), [("exponential", None), ("bernoulli", 0.25)])
def test_weights_find_what_certainty_hides(kind: str, p: float | None) -> None:
    """Code-like text, nine tokens in ten certain."""
    rng = np.random.default_rng(0)
    plain, weighted = [], []
    for _ in range(60):
        scores, entropies = marked_scores(rng, 400, 0.9, kind)
        plain.append(pvalue.gamma(400, scores.sum()) if p is None else pvalue.binomial(400, p, scores.sum()))
        weighted.append(weighted_log10_tail(kind, scores, entropy_weights(entropies), p))  # type: ignore[arg-type]
    assert np.median(weighted) < np.median(plain) - 4


def test_equal_weights_are_the_plain_tail() -> None:
    scores = np.random.default_rng(1).standard_exponential(50) * 1.5
    assert weighted_log10_tail("exponential", scores, np.full(50, 0.5)) == pvalue.gamma(50, scores.sum())


def test_many_weights_get_a_bound_above_the_exact_tail() -> None:
    rng = np.random.default_rng(2)
    scores, weights = rng.standard_exponential(60) * 1.7, rng.random(60) + 0.5
    up = np.ceil(weights * 16) / 16
    bound = weighted_log10_tail("exponential", scores, weights)
    assert pvalue.saddlepoint_exponentials(weights, weights @ scores) < bound < 0
    assert weighted_log10_tail("exponential", scores, up) < bound


def test_weights_are_few_and_capped() -> None:
    weights = entropy_weights(np.array([0.0, 0.05, 0.3, 1.0, 2.0, 9.0]))
    assert weights.tolist() == [0.0, 0.0, 0.125, 0.5, 1.0, 1.0]
    assert len(np.unique(entropy_weights(np.linspace(0, 5, 999), cap=3.0, steps=4))) == 5


def test_nothing_left_says_nothing() -> None:
    assert weighted_log10_tail("exponential", np.ones(4), np.zeros(4)) == 0.0
    assert weighted_log10_tail("bernoulli", np.ones(4), np.zeros(4), 0.25) == 0.0
    assert weighted_log10_tail("exponential", np.array([]), np.array([])) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: weighted_log10_tail("exponential", np.ones(3), np.ones(2)),
        lambda: weighted_log10_tail("exponential", np.ones(3), -np.ones(3)),
        lambda: weighted_log10_tail("exponential", -np.ones(3), np.ones(3)),
        lambda: weighted_log10_tail("exponential", np.ones(3), np.ones(3), 0.5),
        lambda: weighted_log10_tail("bernoulli", np.ones(3), np.ones(3)),
        lambda: weighted_log10_tail("bernoulli", np.full(3, 0.5), np.ones(3), 0.5),
        lambda: entropy_weights(np.array([-1.0])),
        lambda: entropy_weights(np.ones(2), cap=0.0),
        lambda: entropy_weights(np.ones(2), steps=0),
    ],
)
def test_wrong_input(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"weight|negative|bernoulli|positive"):
        wrong()  # type: ignore[operator]
