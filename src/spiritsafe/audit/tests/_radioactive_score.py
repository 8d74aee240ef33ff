"""Pairs scored under a key: the sum, what it is worth, and what decoys would have had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spiritsafe.audit._types import Hypothesis
from spiritsafe.audit.tests._radioactive_keys import Tried
from spiritsafe.audit.tests._radioactive_law import effect_of, stopped_log10_e
from spiritsafe.pvalue import from_evalues
from spiritsafe.watermark import NativeDetector, Reading
from spiritsafe.watermark._decoys import decoy_totals, tail_of
from spiritsafe.watermark._prf import context_hashes, key_words
from spiritsafe.watermark._threads import threads_for

__all__ = ["Scored", "account_scores", "epoch_score"]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One key's sum over n pairs.

    tail: log10 of the tail at n, as if n were fixed.  log10_e: the e-value; None where n is fixed.
    """

    tried: Tried
    n: int
    total: float
    tail: float
    log10_e: float | None
    rank: tuple[int, int] | None
    effect: Mapping[str, Any]

    @property
    def log10_p(self) -> float:
        return self.tail if self.log10_e is None else from_evalues(self.log10_e)

    def hypothesis(self, family: int, corrected: float) -> Hypothesis:
        facts = {
            "layer": self.tried.layer,
            "slot": self.tried.slot,
            "scheme": self.tried.detector.scheme,
            "p_by": "tail" if self.log10_e is None else "e-value",
            "log10_e": self.log10_e,
            "log10_tail": self.tail,
            "family": family,
            "log10_p_family": corrected,
            "effect": dict(self.effect),
        }
        return Hypothesis(self.tried.name, self.log10_p, self.n, self.total, self.rank, facts)


def epoch_score(tried: Tried, reading: Reading, fixed: bool, seed: bytes, decoys: int) -> Scored:
    """An epoch's key, or an engine's, on what counts for it.

    fixed: how many pairs there are does not depend on the key.
    """
    detector = tried.detector
    scores = detector.scores(reading, 0)
    values, kept = scores.values[scores.counted], reading.take(scores.counted)
    n, total = len(values), float(values.sum())
    rank = None
    if decoys and not detector.keyed_reading:
        totals_K = decoy_totals(detector, reading, 0, seed, decoys)
        rank = int((totals_K >= total).sum()), decoys
    return Scored(
        tried=tried,
        n=n,
        total=total,
        tail=tail_of(detector, n, kept.inputs)(total),
        log10_e=None if fixed else stopped_log10_e(detector, n, total),
        rank=rank,
        effect=effect_of(detector, values),
    )


def account_scores(tried: Sequence[Tried], reading: Reading, fixed: bool) -> list[Scored]:
    """Accounts' keys of one epoch and scheme, on what counts for accounts."""
    detector = tried[0].detector
    assert isinstance(detector, NativeDetector)
    with threads_for(len(tried) * len(reading.tokens)):
        n, totals = detector.account_totals(reading, 0, b"".join(one.key for one in tried))
    found = []
    for one, sum_ in zip(tried, totals, strict=True):
        total = float(sum_)
        hashes = context_hashes(key_words(one.key)[0], reading.windows)
        found.append(
            Scored(
                tried=one,
                n=n,
                total=total,
                tail=detector.log10_tail(n, total),
                log10_e=None if fixed else stopped_log10_e(detector, n, total),
                rank=None,
                effect=effect_of(detector, detector.marks.scores(hashes, reading.tokens)),
            )
        )
    return found
