"""How often random orders agree by chance."""

from __future__ import annotations

import numpy as np

__all__ = ["matches"]

_STEPS = 200
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0


def matches(found: int, orders: int, choices: int = 1) -> float:
    """An upper bound on log10 P(so many things stand in their place), over `orders` independent random orders.

    Two lists are matched one to one, in part or whole, by any rule that looks at the things and not at their places; F
    counts the pairs that have the same place in both. If one list's order is uniformly random, k given things of it
    take k given places with probability (h−k)!/h!, so E[C(F, k)] ≤ 1/k!, and E[z^F] = Σ E[C(F, k)] (z−1)^k ≤ e^(z−1)
    for z ≥ 1, whatever the length h. Where each order may be held against `choices` other lists and only the best
    counts, E[z^max] ≤ 1 + choices·(e^(z−1) − 1). Independent orders multiply; Markov's inequality then holds for every
    z, so a search that stops early gives a weaker bound, never a wrong one. 0.0 for found ≤ orders.

    found: places that agree, summed over the orders.

    Raises:
        ValueError: found < 0, orders < 0, choices < 1, or something found in no order at all.
    """
    if found < 0 or orders < 0 or choices < 1 or (found > 0 and orders == 0):
        raise ValueError(f"{found} agreeing places in {orders} orders with {choices} choices cannot be")
    if found <= orders:
        return 0.0

    def exponent(ln_z: float) -> float:
        x = np.exp(ln_z) - 1.0
        ln_moment = np.log1p(choices * np.expm1(x)) if x < 30 else x + np.log(choices)
        return float(orders * ln_moment - found * ln_z)

    low, high = 0.0, float(np.log(found + 1.0))
    for _ in range(_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if exponent(left) < exponent(right):
            high = right
        else:
            low = left
    return min(exponent(low) / float(np.log(10.0)), 0.0) + 0.0
