"""Intervals by the paired bootstrap over prompts.

Resampled unit: the prompt, with everything every model did on it, so that hard prompts are hard for all of them at
once and answers to one prompt stay together. Interval: percentiles 2.5 and 97.5 (Efron & Tibshirani, 1993, ch. 13).
What it cannot show: how the student does on prompts from elsewhere, or after another training seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MIN_GAP", "Recovered", "Resampler", "recovered"]

Array = NDArray[np.float64]
Interval = tuple[float, float]

MIN_GAP = 0.02  # nats; closer than this, teacher and base are the same for this purpose and the ratio is noise
_CELLS = 1 << 22  # resamples × prompts drawn at once


@dataclass(frozen=True, slots=True)
class Resampler:
    """Draws resamples of P prompts. The same seed draws the same resamples, so statistics are paired across calls."""

    prompts: int
    resamples: int
    seed: int

    def interval(self, statistic: Callable[..., Array], *sums: Array) -> Interval | None:
        """95 % interval of `statistic` of resampled totals; None with fewer than two prompts.

        sums: per-prompt sums, (P,) each.  statistic: takes the totals of each resample, (R,) arrays, and returns (R,).
        """
        if self.prompts < 2:
            return None
        values = np.concatenate([statistic(*totals) for totals in self._totals(np.stack(sums, 1))])
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)

    def _totals(self, sums: Array) -> list[Array]:
        rng = np.random.default_rng(self.seed)
        share = np.full(self.prompts, 1 / self.prompts)
        step = max(1, _CELLS // self.prompts)
        return [
            (rng.multinomial(self.prompts, share, size=min(step, self.resamples - done)) @ sums).T
            for done in range(0, self.resamples, step)
        ]


@dataclass(frozen=True, slots=True)
class Recovered:
    """(student − base) / (teacher − base) of the NLL, or why it is refused."""

    value: float | None = None
    ci95: Interval | None = None
    refused: str | None = None


def recovered(teacher: Array, base: Array, student: Array, units: Array, resampler: Resampler) -> Recovered:
    """How much of the way from base to teacher the student went, by NLL.

    teacher, base, student: NLL summed by prompt, (P,).  units: tokens (or bytes) by prompt, (P,).
    Refused where the way is too short to divide by: the gap's interval reaches 0, or the gap is under MIN_GAP.
    """
    if resampler.prompts < 2:
        return Recovered(refused="an interval needs at least two held-out prompts")
    gap = float((base.sum() - teacher.sum()) / units.sum())
    gap_ci = resampler.interval(lambda t, b, n: (b - t) / n, teacher, base, units)
    assert gap_ci is not None
    if gap_ci[0] <= 0 <= gap_ci[1]:
        return Recovered(
            refused=f"teacher and untrained start cannot be told apart: their NLL differs by {gap:.3f} nats, "
            f"95 % interval {gap_ci[0]:.3f} to {gap_ci[1]:.3f}"
        )
    if gap < MIN_GAP:
        return Recovered(
            refused=f"the teacher is not ahead of the untrained start by {MIN_GAP} nats or more (it is {gap:.3f})"
        )
    value = float((student.sum() - base.sum()) / (teacher.sum() - base.sum()))
    ci = resampler.interval(lambda t, b, s: (s - b) / (t - b), teacher, base, student)
    return Recovered(value, ci)
