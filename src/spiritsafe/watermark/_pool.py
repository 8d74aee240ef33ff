"""A corpus as one text: sums over all documents, each PRF input counted once in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spiritsafe.watermark._decoys import Tail, decoy_totals, tail_of
from spiritsafe.watermark._prf import U64
from spiritsafe.watermark._seen import Seen
from spiritsafe.watermark._types import F64, Detector, Reading, Scores, TailOfInputs

__all__ = ["Pool", "joined"]


@dataclass(slots=True, eq=False)
class _Sums:
    """Of one trial. inputs: only for detectors whose law depends on them."""

    decoys_K: F64
    n: int = 0
    total: float = 0.0
    inputs: list[U64] = field(default_factory=list)


class Pool:
    """Grows by readings; keeps sums and the set of inputs seen, not the readings.

    decoys: how many decoys to sum for, for detectors whose decoys share the reading.
    """

    def __init__(self, detector: Detector, decoys: int, seed: bytes) -> None:
        self._detector, self._decoys, self._seed = detector, decoys, seed
        self._seen = Seen()
        self._sums = [_Sums(np.zeros(decoys)) for _ in detector.trials]

    def add(
        self, reading: Reading, scored_E: Sequence[Scores] | None = None, decoys_EK: Sequence[F64] | None = None
    ) -> None:
        """Add what the corpus has not had yet. The reading may repeat itself.

        scored_E, decoys_EK: what the trials say of this reading, where that is known already; both are only of use if
        it does not repeat itself.
        """
        new = self._seen.add(reading.inputs)
        if not new.any():
            return
        fresh = reading.take(new)
        known = bool(new.all())
        for trial, sums in enumerate(self._sums):
            scores = scored_E[trial] if known and scored_E else self._detector.scores(fresh, trial)
            kept = scores.counted
            sums.n += int(kept.sum())
            sums.total += float(scores.values[kept].sum())
            if isinstance(self._detector, TailOfInputs):
                sums.inputs.append(fresh.inputs[kept])
            if self._decoys and known and decoys_EK:
                sums.decoys_K += decoys_EK[trial]
            elif self._decoys:
                sums.decoys_K += decoy_totals(self._detector, fresh, trial, self._seed, self._decoys)

    def totals(self) -> list[tuple[int, float]]:
        """(n, total) of each trial."""
        return [(sums.n, sums.total) for sums in self._sums]

    def tails(self) -> list[Tail]:
        """The null law of each trial's total."""
        none = np.empty(0, np.uint64)
        return [tail_of(self._detector, sums.n, np.concatenate([none, *sums.inputs])) for sums in self._sums]

    def decoy_totals(self) -> list[F64]:
        """Each trial's totals (K,) under the decoys."""
        return [sums.decoys_K for sums in self._sums]


def joined(readings: Sequence[Reading]) -> Reading:
    """One reading of many, at least one; positions are those in their own texts."""
    return Reading(
        np.concatenate([r.inputs for r in readings]),
        np.concatenate([r.positions for r in readings]),
        np.concatenate([r.windows for r in readings]),
        np.concatenate([r.tokens for r in readings]),
    )
