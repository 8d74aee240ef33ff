"""Scores weighted by how much the text could have said instead, with a p-value that stays valid.

Null hypothesis: no score depends on the key. Needs an entropy for each scored position, from any model that reads the
text; not the key. A token that had to come carries no mark, only noise: weighting by entropy takes that noise out, most
of what there is in code and mathematics. Under the null the weights are constants, whatever made them, as long as the
key had no part in it: wrong weights cost power, never validity. It cannot find a mark where there was no choice.

Weights first used so: Lu et al., "An entropy-based text watermarking detection method" (2024), there with a z-score.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spiritsafe import pvalue

__all__ = ["entropy_weights", "weighted_log10_tail"]

F64 = NDArray[np.float64]

_EXACT_BELOW = 32  # different weights


def entropy_weights(entropies_N: F64, *, cap: float = 2.0, steps: int = 8) -> F64:
    """Weights (N,) in [0, 1] from entropies (N,) in nats: rounded to `steps` equal steps up to `cap`, where they stop.

    Few different weights keep the tail exact (`weighted_log10_tail`).

    Raises:
        ValueError: an entropy is negative or not a number, or cap or steps is not positive.
    """
    entropies = np.asarray(entropies_N, np.float64)
    if not (entropies >= 0).all():
        raise ValueError("entropies must be numbers, not negative")
    if not cap > 0 or steps < 1:
        raise ValueError(f"cap and steps must be positive, got {cap} and {steps}")
    return np.asarray(np.rint(np.minimum(entropies / cap, 1.0) * steps) / steps)


def weighted_log10_tail(
    kind: Literal["exponential", "bernoulli"], scores_N: F64, weights_N: F64, p: float | None = None
) -> float:
    """log10 P(Σ w_i S_i ≥ the sum seen) under H0: 0.0 where no weight is left.

    kind: the law of one score, "exponential" (Gumbel; unit mean) or "bernoulli" (green or not, with probability `p`).
    scores_N: deduplicated, counted scores.  weights_N: ≥ 0, made without the key.

    Exact for exponential scores with up to 32 different weights (`pvalue.gamma_sum`; long texts: its bound); a Chernoff
    bound otherwise, which is 1.2 decades above the exact value at 1e-6.

    Raises:
        ValueError: scores and weights differ in shape, a weight is negative or infinite, a score is not one of this
            kind, or `p` is missing or given where it has no meaning.
    """
    scores, weights = np.asarray(scores_N, np.float64), np.asarray(weights_N, np.float64)
    if scores.ndim != 1 or scores.shape != weights.shape:
        raise ValueError(f"one weight a score: got shapes {weights.shape} and {scores.shape}")
    if (p is None) == (kind == "bernoulli"):
        raise ValueError("p belongs to bernoulli scores, and they need it")
    total = float(weights @ scores)
    if p is not None:
        if not ((scores == 0) | (scores == 1)).all():
            raise ValueError("bernoulli scores are 0 or 1")
        return pvalue.weighted_bernoullis(weights, p, total)
    if not (scores >= 0).all():
        raise ValueError("exponential scores are not negative")
    values, counts = np.unique(weights, return_counts=True)
    if values.size <= _EXACT_BELOW:
        return pvalue.gamma_sum(counts.astype(np.float64), values, total)
    return pvalue.weighted_exponentials(weights, total)
