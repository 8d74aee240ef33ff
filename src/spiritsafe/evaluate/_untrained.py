"""The rival that costs nothing: the same teacher with layers taken out and no training.

A pruned start is close to noise, so "recovered" alone flatters. A student is only worth its training if it beats every
prune of its own size or smaller, so a few kinds compete on some held-out tokens and the best is scored on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spiritsafe.evaluate._bench import Bench
from spiritsafe.evaluate._score import Scores
from spiritsafe.train import Example, even_layers, prune_layers, sensitivity_layers

__all__ = ["Prune", "Untrained", "best_untrained", "prunes"]

Keep = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prune:
    strategy: str
    keep: Keep


@dataclass(frozen=True, slots=True, eq=False)
class Untrained:
    """The best prune with its scores on every exchange, and all candidates with theirs on the screened ones."""

    prune: Prune
    params: int
    scores: Scores
    candidates: list[tuple[Prune, Scores]]
    screened: list[int]


def prunes(total: int, own: Keep, sensitive: Keep | None = None) -> list[Prune]:
    """Ways to keep at most n of `total` layers, n being what the student keeps. Each once.

    The student's own start; evenly n, n − 1, n − 2 and n − 4; and the n most sensitive, where that was measured.
    """
    n = len(own)
    found = [Prune("the student's start", own)]
    found += [Prune("even", even_layers(total, k)) for k in (n, n - 1, n - 2, n - 4) if 2 <= k <= total]
    if sensitive is not None:
        found.append(Prune("sensitivity", sensitive))
    return list({prune.keep: prune for prune in reversed(found)}.values())[::-1]


def best_untrained(
    source: Any,
    own: Keep,
    bench: Bench,
    known: Mapping[Keep, Scores],
    calibration: Sequence[Example],
    screen_tokens: int,
) -> Untrained:
    """Let prunes of `source` no deeper than the student compete; lowest KL wins, or lowest NLL where there is no KL.

    own: the layers the student started from.  known: scores on all of `bench` of prunes that were already run.
    calibration: training examples to measure each layer's sensitivity on; without any that prune does not compete.
    """
    total = int(source.config.get_text_config().num_hidden_layers)
    sensitive = _by_sensitivity(source, len(own), calibration, bench.vocab)
    screen, rows = bench.up_to(screen_tokens)
    candidates = []
    for prune in prunes(total, own, sensitive):
        if prune.keep in known:
            candidates.append((prune, known[prune.keep].rows(rows)))
        else:
            candidates.append((prune, screen.scores(prune_layers(source, prune.keep))))
    best = min(candidates, key=lambda entry: entry[1].distance)[0]
    model = prune_layers(source, best.keep)
    scores = known[best.keep] if best.keep in known else bench.scores(model)
    return Untrained(best, model.num_parameters(), scores, candidates, rows)


def _by_sensitivity(source: Any, n: int, calibration: Sequence[Example], vocab: int) -> Keep | None:
    total = int(source.config.get_text_config().num_hidden_layers)
    return sensitivity_layers(source, n, calibration, vocab) if calibration and n < total else None
