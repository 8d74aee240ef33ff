"""Where in a long document the mark is.

Null hypothesis: no score of the document depends on the key. Needs the scores of one document under one key, after
deduplication. The error held is family-wise: a document without the mark gets any span at all with at most the chance
asked for. It cannot show that every token of a span is marked, nor find fragments too short for their share of the
correction: the span's p-value is that of the best interval tried in it, its ends are an estimate.

The intervals tried are fixed before a score is seen: 32, 64, 128 … scored tokens, starting every half length, and the
whole document, about N/8 in all. Each has an exact tail; Bonferroni pays for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spiritsafe import pvalue

__all__ = ["Span", "find_spans"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_SHORTEST = 32
_GIVE_UP = 8.0  # log-likelihood ratio against the mark that ends a span
_BRIDGED = 16  # scored tokens between two spans that make them one


@dataclass(frozen=True, slots=True)
class Span:
    """Document tokens [start, end) that hold a mark.

    n_scored: how many of them counted.
    log10_p: of the best interval tried in the span, corrected for every interval and trial.
    """

    start: int
    end: int
    n_scored: int
    log10_p: float


def find_spans(
    scores_N: F64,
    positions_N: I64,
    log10_tail: Callable[[int, float], float],
    *,
    trials: int = 1,
    log10_level: float = -3.0,
    log10_tail_of: Callable[[slice, float], float] | None = None,
) -> list[Span]:
    """The marked spans of one document, in order; empty where nothing reaches the level.

    scores_N: scores under one key of the document's deduplicated, counted positions, identically distributed and
        independent under H0. positions_N: the token index of each, rising.
    log10_tail(n, total): the detector's upper tail of the sum of n scores.
    trials: how many keys (epochs, accounts) were tried; the correction pays for them too.
    log10_level: the family-wise error of one document.
    log10_tail_of(scored, total): the tail of the sum of these of the N scores, for detectors whose law depends on which
        are scored; `log10_tail` then only chooses the candidates.

    Raises:
        ValueError: scores and positions differ in shape, or positions do not rise.
    """
    scores, positions = np.asarray(scores_N, np.float64), np.asarray(positions_N, np.int64)
    if scores.ndim != 1 or scores.shape != positions.shape:
        raise ValueError(f"one score a position: got shapes {scores.shape} and {positions.shape}")
    if (np.diff(positions) <= 0).any():
        raise ValueError("positions must rise")
    if not scores.size:
        return []
    levels = _intervals(scores.size)
    tried = trials * sum(starts.size for _, starts in levels)
    threshold = log10_level - float(np.log10(tried))
    mean = _null_mean(scores, log10_tail)
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    found: list[tuple[int, int, float]] = []
    for start, end in _candidates(levels, sums, mean, log10_tail, threshold):
        if any(start < b and a < end for a, b, _ in found):
            continue
        total = float(sums[end] - sums[start])
        log10_p = log10_tail(end - start, total) if log10_tail_of is None else log10_tail_of(slice(start, end), total)
        if log10_p <= threshold:
            found.append((start, end, pvalue.bonferroni(log10_p, tried)))
    edges = sorted((*_edges(scores, start, end, mean), log10_p) for start, end, log10_p in found)
    return [Span(int(positions[a]), int(positions[b - 1]) + 1, b - a, log10_p) for a, b, log10_p in _merged(edges)]


def _intervals(n: int) -> list[tuple[int, I64]]:
    """(length, starts) of every interval tried, in scored tokens."""
    levels = []
    length = _SHORTEST
    while length < n:
        starts = np.arange(0, n - length + 1, length // 2)
        levels.append((length, starts if starts[-1] == n - length else np.append(starts, n - length)))
        length *= 2
    levels.append((n, np.zeros(1, np.int64)))
    return levels


def _null_mean(scores: F64, log10_tail: Callable[[int, float], float]) -> float:
    """About the mean of a score under H0: where the tail of many passes one half. It steers; no p-value uses it."""
    n = 1000
    low, high = min(0.0, float(scores.min())), float(scores.max())
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if log10_tail(n, n * middle) > np.log10(0.5) else (low, middle)
    return low


def _candidates(
    levels: list[tuple[int, I64]], sums: F64, mean: float, log10_tail: Callable[[int, float], float], threshold: float
) -> list[tuple[int, int]]:
    """The intervals that reach the threshold, the most striking first.

    Few tails are computed: among equal lengths the p-value falls with the total, so the last that reaches is found by
    halving.
    """
    ranked = []
    for length, starts in levels:
        totals = sums[starts + length] - sums[starts]
        order = np.argsort(-totals, kind="stable")
        reach, beyond = 0, order.size
        while reach < beyond:
            middle = (reach + beyond) // 2
            if log10_tail(length, float(totals[order[middle]])) <= threshold:
                reach = middle + 1
            else:
                beyond = middle
        for i in order[:reach]:
            excess = (totals[i] - length * mean) / length**0.5
            ranked.append((-float(excess), int(starts[i]), int(starts[i]) + length))
    return [(start, end) for _, start, end in sorted(ranked)]


def _edges(scores: F64, start: int, end: int, mean: float) -> tuple[int, int]:
    """[start, end) cut to its best run, then extended both ways until the evidence turns.

    A CUSUM (Page, 1954) between the null mean and the mean inside.
    """
    lift = float(scores[start:end].mean()) - mean
    if lift <= 0:
        return start, end
    steps = scores - (mean + 0.5 * lift)
    drop = _GIVE_UP * max(float(scores.var()), float(scores[start:end].var())) / lift
    inside = np.concatenate([[0.0], np.cumsum(steps[start:end])])
    last = int(np.argmax(inside - np.minimum.accumulate(inside)))
    first = int(np.argmin(inside[: last + 1]))
    a, b = start + first, start + max(last, first + 1)
    return a - _run(steps[:a][::-1], drop), b + _run(steps[b:], drop)


def _run(steps: F64, drop: float) -> int:
    """How many steps to the highest point reached before the sum falls `drop` below one."""
    walk = np.concatenate([[0.0], np.cumsum(steps)])
    fallen = np.flatnonzero(np.maximum.accumulate(walk) - walk > drop)
    return int(np.argmax(walk[: fallen[0]] if fallen.size else walk))


def _merged(edges: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    """Runs that touch or nearly touch, as one with the best p-value among them."""
    merged: list[tuple[int, int, float]] = []
    for start, end, log10_p in edges:
        if merged and start - merged[-1][1] <= _BRIDGED:
            a, b, best = merged.pop()
            start, end, log10_p = a, max(b, end), min(best, log10_p)
        merged.append((start, end, log10_p))
    return merged
