"""Sums that may have stopped at any number of scores, for any reason that the scores before had a part in.

A tail at the number n of scores seen takes n for fixed. Where the scores so far had a say in how many there would be
(a text that a mark steered is longer or shorter for it), what holds is a martingale: for a tilt λ > 0 with
K(λ) = ln E[e^{λS}] of one score, e^{λ·total − n·K(λ)} has mean 1 whenever one stops, and so has the mean over some
tilts fixed beforehand. 1 / that mean bounds the p-value (Ville, 1939; Robbins, "Statistical methods related to the law
of the iterated logarithm", 1970, for mixtures). K may be any upper bound of the true one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["tilted_evalue"]


def tilted_evalue(n: int, total: float, tilts_J: Sequence[float], log_mgfs_J: Sequence[float]) -> float:
    """log10 of the mean over J tilts λ of exp(λ·total − n·K(λ)): at least 0 evidence against the law of K where > 0.

    log_mgfs_J: K at each tilt, natural logarithms. 0.0 for n = 0. `from_evalues` makes a p-value of it.

    Raises:
        ValueError: no tilts, tilts and logarithms that do not match, or a tilt that is not positive.
    """
    tilts, mgfs = np.asarray(tilts_J, np.float64), np.asarray(log_mgfs_J, np.float64)
    if tilts.ndim != 1 or tilts.shape != mgfs.shape or not tilts.size or not (tilts > 0).all():
        raise ValueError("give positive tilts, and the logarithm of the generating function at each")
    if n == 0:
        return 0.0
    return float((np.logaddexp.reduce(tilts * total - n * mgfs) - np.log(tilts.size)) / np.log(10.0))
