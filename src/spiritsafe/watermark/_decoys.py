"""Decoy keys: how many of them do as well as the true key, best trial against best trial.

The rank p = (1 + b) / (1 + K) holds whatever the law of a score (Besag and Clifford, "Generalized Monte Carlo
significance tests", 1989): under H0 the true key is one of K + 1 that are exchangeable, given who speaks for which
position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from spiritsafe.watermark._prf import U64
from spiritsafe.watermark._threads import threads_for
from spiritsafe.watermark._types import F64, Detector, Reading, TailOfInputs

__all__ = ["DECOY_SEED", "Tail", "decoy_totals", "exceeding", "tail_of"]

DECOY_SEED = b"spiritsafe decoys 1"
Tail = Callable[[float], float]
"""log10 p of a total; falls as the total rises."""


def tail_of(detector: Detector, n: int, inputs_N: U64) -> Tail:
    """The null law of a sum over these n inputs."""
    if isinstance(detector, TailOfInputs):
        return lambda total: detector.log10_tail_of(inputs_N, total)
    return lambda total: detector.log10_tail(n, total)


def decoy_totals(detector: Detector, reading: Reading, trial: int, seed: bytes, count: int) -> F64:
    """Totals (count,) of a deduplicated reading under the decoys of one trial."""
    with threads_for(count * len(reading.tokens)):
        return detector.decoy_totals(reading, trial, seed, count)[1]


def exceeding(log10_p: float, true_E: Sequence[float], tails_E: Sequence[Tail], totals_EK: Sequence[F64]) -> int:
    """How many of K decoys have a best trial as good as the true key's, given their total (K,) in each trial.

    log10_p: the true key's best trial.  true_E: its totals; with one trial they are all that is compared.
    """
    if len(true_E) == 1:
        return int((totals_EK[0] >= true_E[0]).sum())
    reached = np.zeros(len(totals_EK[0]), bool)
    for tail, totals_K in zip(tails_E, totals_EK, strict=True):
        reached |= totals_K >= _threshold(tail, totals_K, log10_p)
    return int(reached.sum())


def _threshold(tail: Tail, totals_K: F64, log10_p: float) -> float:
    """The least of the totals whose p is at most `log10_p`; infinity if there is none. A few tails instead of K."""
    ordered = np.unique(totals_K)
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if tail(float(ordered[middle])) <= log10_p:
            high = middle
        else:
            low = middle + 1
    return float(ordered[low]) if low < len(ordered) else math.inf
