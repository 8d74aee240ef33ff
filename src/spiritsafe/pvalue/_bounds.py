"""Chernoff bounds where a weighted sum has no closed tail, and saddlepoint approximations to look at.

P(S ≥ s) ≤ exp(K(θ) − θs) for every θ ≥ 0 inside the domain of the cumulant function K, so a solver that stops early
gives a weaker bound, never a wrong one.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from scipy import special

from spiritsafe.pvalue._tails import F64, to_log10

__all__ = ["saddlepoint_bernoullis", "saddlepoint_exponentials", "weighted_bernoullis", "weighted_exponentials"]

_HALVINGS = 50
_ROUNDING = 1e-9


class _Exponentials:
    """K(θ) = −Σ ln(1 − θ w), for θ < 1/max w."""

    def __init__(self, weights_U: F64, counts_U: F64) -> None:
        self.w, self.n = weights_U, counts_U
        self.mean = float(counts_U @ weights_U)
        self.most = np.inf

    def limit(self, s: float) -> float:
        """A θ that K'(θ) ≥ s holds for: the largest weight alone does it."""
        top = float(self.w.max())
        return (1.0 - min(top / s, 1.0)) / top

    def exponent(self, theta: float, s: float) -> float:
        return float(-theta * s - self.n @ np.log1p(-theta * self.w))

    def slopes(self, theta: float) -> tuple[float, float, float]:
        """The first three derivatives of K."""
        ratio = self.w / (1.0 - theta * self.w)
        return float(self.n @ ratio), float(self.n @ ratio**2), float(2 * (self.n @ ratio**3))


class _Bernoullis:
    """K(θ) = Σ ln(1 − p + p e^{θw})."""

    def __init__(self, weights_U: F64, counts_U: F64, p: float) -> None:
        self.w, self.n, self.p = weights_U, counts_U, p
        self.most = float(counts_U @ weights_U)
        self.mean = p * self.most

    def limit(self, s: float) -> float:
        farthest = (745.0 - float(np.log(self.p))) / max(float(self.w.min()), 1e-290)
        theta = min(1.0 / max(float(self.w.max()), 1e-290), farthest)
        while theta < farthest and self.slopes(theta)[0] < s:
            theta *= 2.0
        return min(theta, farthest)

    def exponent(self, theta: float, s: float) -> float:
        # Written from the far end, so that s near the largest possible sum cancels nothing.
        missed = self.n @ np.log(self.p + (1 - self.p) * np.exp(-theta * self.w))
        return float(theta * (self.most - s) + missed)

    def slopes(self, theta: float) -> tuple[float, float, float]:
        hit = self.p / (self.p + (1 - self.p) * np.exp(-theta * self.w))
        spread = hit * (1 - hit)
        return (
            float(self.n @ (self.w * hit)),
            float(self.n @ (self.w**2 * spread)),
            float(self.n @ (self.w**3 * spread * (1 - 2 * hit))),
        )


_Law = _Exponentials | _Bernoullis


def _solve(law: _Law, s: float) -> float:
    """θ ≥ 0 near K'(θ) = s for s above the mean; K' rises, so halving the bracket finds it."""
    low, high = 0.0, law.limit(s)
    for _ in range(_HALVINGS):
        theta = 0.5 * (low + high)
        if law.slopes(theta)[0] < s:
            low = theta
        else:
            high = theta
    return low


def _grouped(weights_N: NDArray[Any]) -> tuple[F64, F64]:
    weights = np.asarray(weights_N, np.float64).reshape(-1)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("weights must be finite and not negative")
    some = weights[weights > 0]
    # A weight of next to nothing counts as a little more, which keeps a bound a bound and θ representable.
    values, counts = np.unique(np.maximum(some, 1e-12 * some.max(initial=0.0)), return_counts=True)
    return values, counts.astype(np.float64)


def _chernoff(law: _Law, s: float) -> float:
    return min(law.exponent(_solve(law, s), s), 0.0) if s > law.mean else 0.0


def _lugannani_rice(law: _Law, s: float) -> float:
    """ln of the Lugannani–Rice approximation (1980) at s > mean."""
    theta = _solve(law, s)
    _, variance, third = law.slopes(theta)
    u = theta * np.sqrt(variance)
    w = np.sqrt(max(-2.0 * law.exponent(theta, s), 0.0))
    if w < 1e-3 or variance <= 0:
        return float(np.log(0.5 - third / (6 * np.sqrt(2 * np.pi) * variance**1.5))) if variance > 0 else -0.5 * w * w
    mills = np.sqrt(np.pi / 2) * special.erfcx(w / np.sqrt(2))
    return float(-0.5 * w * w - 0.5 * np.log(2 * np.pi) + np.log(max(mills + 1 / u - 1 / w, 1e-300)))


def _each(law: _Law | None, s: Any, method: Any) -> Any:
    sums = np.atleast_1d(np.asarray(s, np.float64))
    if not np.isfinite(sums).all():
        raise ValueError("a sum of scores must be finite")
    most = 0.0 if law is None else law.most
    if (sums > most * (1 + _ROUNDING)).any():
        raise ValueError(f"a sum of {np.max(sums):g} is more than the weights allow ({most:g})")
    values = [0.0 if law is None else method(law, min(float(one), most)) for one in sums.reshape(-1)]
    return to_log10(np.asarray(values, np.float64).reshape(sums.shape), s)


def _exponentials(weights_N: NDArray[Any]) -> _Exponentials | None:
    values, counts = _grouped(weights_N)
    return _Exponentials(values, counts) if values.size else None


def _bernoullis(weights_N: NDArray[Any], p: float) -> _Bernoullis | None:
    if not 0.0 < p < 1.0:
        raise ValueError(f"a probability must lie strictly between 0 and 1, got {p}")
    values, counts = _grouped(weights_N)
    return _Bernoullis(values, counts, p) if values.size else None


@overload
def weighted_exponentials(weights_N: NDArray[Any], s: float) -> float: ...
@overload
def weighted_exponentials(weights_N: NDArray[Any], s: F64) -> F64: ...
def weighted_exponentials(weights_N: NDArray[Any], s: Any) -> Any:
    """An upper bound (Chernoff) on log10 P(Σ w_i E_i ≥ s), E_i independent unit exponentials. 0.0 for s ≤ Σ w_i.

    Valid for any weights ≥ 0 that do not depend on the E_i. About θσ√2π times the exact p: 1.2 decades at 1e-6.

    Raises:
        ValueError: a weight is negative or infinite, s is not finite, or s > 0 where every weight is zero.
    """
    return _each(_exponentials(weights_N), s, _chernoff)


@overload
def weighted_bernoullis(weights_N: NDArray[Any], p: float, s: float) -> float: ...
@overload
def weighted_bernoullis(weights_N: NDArray[Any], p: float, s: F64) -> F64: ...
def weighted_bernoullis(weights_N: NDArray[Any], p: float, s: Any) -> Any:
    """An upper bound (Chernoff) on log10 P(Σ w_i B_i ≥ s), B_i independent Bernoulli(p). 0.0 for s ≤ p Σ w_i.

    Valid for any weights ≥ 0 that do not depend on the B_i.

    Raises:
        ValueError: as `weighted_exponentials`, p outside (0, 1), or s above Σ w_i by more than rounding.
    """
    return _each(_bernoullis(weights_N, p), s, _chernoff)


def saddlepoint_exponentials(weights_N: NDArray[Any], s: float) -> float:
    """For display, never reported: log10 P(Σ w_i E_i ≥ s), Lugannani and Rice (1980); neither exact nor a bound."""
    return float(_each(_exponentials(weights_N), s, lambda law, x: _lugannani_rice(law, x) if x > law.mean else 0.0))


def saddlepoint_bernoullis(weights_N: NDArray[Any], p: float, s: float) -> float:
    """For display, never reported: log10 P(Σ w_i B_i ≥ s), Lugannani and Rice (1980); neither exact nor a bound."""
    return float(_each(_bernoullis(weights_N, p), s, lambda law, x: _lugannani_rice(law, x) if x > law.mean else 0.0))
