"""Evidence about fair coins that may be looked at at any time, and stopped on.

A bet λ in [0, 1] on "win" multiplies a capital of 1 by 1 + λ at a win and by 1 − λ at a loss. Where the coins are fair
and each bet is fixed before its coin falls, the capital is a nonnegative martingale that starts at 1: it ever reaches
1/α with a chance of at most α (Ville, 1939), however long one plays and whenever one stops.

The bets here are those of a mixture: λ = 2E[q] − 1, q the win probability, a priori uniform on [½, 1], a posteriori
after the coins so far. Their product has a closed form that knows only how many coins fell and how many were wins:

    E(n, w) = 2ⁿ⁺¹ ∫½¹ qʷ (1 − q)ⁿ⁻ʷ dq = Σ_{j ≤ w} C(n+1, j) / ((n + 1) C(n, w)).

So it does not depend on their order, and no bet was tuned: it loses about half a decimal for each tenfold n to whoever
knew q. E grows with every win and shrinks (or stays) with every loss.

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024); Vovk and Wang, "E-values:
calibration, combination and applications" (2021) for merging.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from spiritsafe.pvalue._tails import F64, binomial_density, ln_beta

__all__ = ["coin_evalue", "coin_process", "from_evalues", "merge_evalues"]

_LN_10 = float(np.log(10.0))


@overload
def coin_evalue(n: int, wins: int) -> float: ...
@overload
def coin_evalue(n: NDArray[Any], wins: NDArray[Any]) -> F64: ...
def coin_evalue(n: Any, wins: Any) -> Any:
    """log10 of E(n, w): what `wins` of `n` coins are worth against "they are fair", for "they favour wins".

    0.0 for n = 0; below 0 where the coins speak for fairness. A float for numbers, an array for arrays of one shape.

    Raises:
        ValueError: not 0 ≤ wins ≤ n, or no whole numbers.
    """
    given_n, given_w = np.asarray(n, np.float64), np.asarray(wins, np.float64)
    if given_n.shape != given_w.shape:
        raise ValueError(f"{given_n.shape} counts of coins, {given_w.shape} of wins")
    coins, won = np.atleast_1d(given_n), np.atleast_1d(given_w)
    if not ((np.floor(coins) == coins) & (np.floor(won) == won) & (won >= 0) & (won <= coins) & (coins < np.inf)).all():
        raise ValueError("wins must be whole numbers from 0 to the number of coins")
    # ∫½¹ qʷ(1−q)ˡ dq = P(Bin(n+1, ½) ≤ w) / ((n+1) C(n, w)), and C(n, w) = 2ⁿ × a binomial density
    lost = coins - won
    tail = ln_beta(lost + 1, won + 1, 0.5, 0.5)
    ln_e = tail + np.log(2.0) - np.log(coins + 1) - binomial_density(won, np.maximum(coins, 1.0), 0.5, 0.5)
    log10_e = np.where(coins == 0, 0.0, ln_e / _LN_10)
    return float(log10_e.reshape(-1)[0]) if given_n.ndim == 0 else log10_e.reshape(given_n.shape)


def coin_process(wins_N: Sequence[bool] | NDArray[Any]) -> F64:
    """log10 of the capital after each of N coins (N,), in the order they fell.

    Raises:
        ValueError: something other than wins (1) and losses (0), or not one list.
    """
    falls = np.asarray(wins_N)
    if falls.ndim != 1 or not np.isin(falls, (0, 1)).all():
        raise ValueError("coins must be one list of wins and losses")
    return coin_evalue(np.arange(1, falls.size + 1), np.cumsum(falls.astype(np.int64)))


def from_evalues(log10_e: Sequence[float] | F64 | float) -> float:
    """log10 of the p-value that an e-process gives: 1 / (its largest value so far), at most 1.

    Valid at any stopping time for an e-process; one e-value alone is one of length 1 (Markov).

    Raises:
        ValueError: a value is not a number.
    """
    values = np.atleast_1d(np.asarray(log10_e, np.float64))
    if np.isnan(values).any():
        raise ValueError("an e-value is not a number")
    return -float(max(values.max(initial=0.0), 0.0)) + 0.0


def merge_evalues(log10_es: Sequence[float] | F64, *, independent: bool) -> float:
    """log10 of one e-value from several against the same hypothesis: their product if they are independent (or each is
    one given those before it), their mean whatever their dependence.

    0.0 for none.

    Raises:
        ValueError: a value is not a number, or not one list.
    """
    values = np.asarray(log10_es, np.float64)
    if values.ndim != 1 or np.isnan(values).any():
        raise ValueError("log10 e-values must be one list of numbers")
    if values.size == 0:
        return 0.0
    if independent:
        return float(values.sum())
    most = float(values.max())
    return most if np.isinf(most) else most + float(np.log10(np.mean(10.0 ** (values - most))))
