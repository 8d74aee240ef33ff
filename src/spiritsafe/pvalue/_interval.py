"""How large an effect may be."""

from __future__ import annotations

from scipy import special

__all__ = ["clopper_pearson"]


def clopper_pearson(n: int, k: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval for a probability of which k successes in n trials were seen: it holds the true one
    with a chance of at least `level`. (0, 1) for n = 0.

    Raises:
        ValueError: not 0 ≤ k ≤ n, or a level outside (0, 1).
    Source: Clopper and Pearson, 1934.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} successes in {n} trials")
    if not 0.0 < level < 1.0:
        raise ValueError(f"a level must lie strictly between 0 and 1, got {level}")
    half = (1.0 - level) / 2
    low = 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, half))
    high = 1.0 if k == n else float(special.betaincinv(k + 1, n - k, 1.0 - half))
    return low, high
