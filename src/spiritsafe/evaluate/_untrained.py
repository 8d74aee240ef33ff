"""The rival that costs nothing: the same teacher with layers taken out and no training.

A pruned start is close to noise, so "recovered" alone flatters. A student is only worth its training if it beats every
prune of its own size or smaller, so a few kinds compete on some held-out tokens and the best is scored on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spiritsafe.evaluate._bench import Bench
from spiritsafe.evaluate._score import Scores
from spiritsafe.train import even_layers, prune_layers

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


def prunes(total: int, n: int, own: Keep) -> list[Prune]:
    """Ways to keep at most n of `total` layers, each once.

    The student's own start; evenly n, n − 1, n − 2 and n − 4; and n without one block before the last layer, where
    layers matter least (Gromov et al., 2024).
    """
    found = [Prune("the student's start", own)]
    found += [Prune("even", even_layers(total, k)) for k in (n, n - 1, n - 2, n - 4) if k >= 2]
    if 2 <= n < total:
        found.append(Prune("deep block out", (*range(n - 1), total - 1)))
    return list({prune.keep: prune for prune in reversed(found)}.values())[::-1]


def best_untrained(source: Any, own: Keep, bench: Bench, known: Mapping[Keep, Scores], screen_tokens: int) -> Untrained:
    """Let prunes of `source` no deeper than the student compete; lowest KL wins, or lowest NLL where there is no KL.

    own: the layers the student started from.  known: scores on all of `bench` of prunes that were already run.
    """
    total = int(source.config.get_text_config().num_hidden_layers)
    screen, rows = bench.up_to(screen_tokens)
    candidates = []
    for prune in prunes(total, len(own), own):
        if prune.keep in known:
            candidates.append((prune, known[prune.keep].rows(rows)))
        else:
            candidates.append((prune, screen.scores(prune_layers(source, prune.keep))))
    best = min(candidates, key=lambda entry: entry[1].distance)[0]
    model = prune_layers(source, best.keep)
    scores = known[best.keep] if best.keep in known else bench.scores(model)
    return Untrained(best, model.num_parameters(), scores, candidates, rows)
