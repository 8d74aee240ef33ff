"""What a sum of scores is worth: at a number of scores that the key had no part in, and at one that it may have had."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from spiritsafe.pvalue import clopper_pearson, from_evalues, tilted_evalue
from spiritsafe.watermark import Detector, NativeDetector
from spiritsafe.watermark._types import F64

__all__ = ["effect_of", "stopped_log10_e", "stopped_log10_p"]

_TILTS = 16  # λ_max · 2^(−j/2): the best of them is within a fifth of any tilt between 0.0055 λ_max and λ_max


def stopped_log10_e(detector: Detector, n: int, total: float) -> float:
    """log10 of the e-value of `pvalue.tilted_evalue` for this detector's scores."""
    most, log_mgf = _law(detector)
    tilts = [most * 2.0 ** (-j / 2) for j in range(_TILTS)]
    return tilted_evalue(n, total, tilts, [log_mgf(tilt) for tilt in tilts])


def stopped_log10_p(log10_e: float) -> float:
    return from_evalues(log10_e)


def _law(detector: Detector) -> tuple[float, Callable[[float], float]]:
    """The largest tilt to try, and an upper bound of ln E[e^{λS}] of one score under H0."""
    kind: Any = detector
    if isinstance(detector, NativeDetector):
        kind = detector.marks
    match getattr(kind, "name", detector.scheme):
        case "kgw":
            return 4.0, _coins(1, kind.gamma)
        case "synthid":
            return 1.0, _coins(kind.depth, 0.5)
        case "hf-kgw":  # at most this chance a coin, tokens of one list being drawn without replacement
            return 4.0, _coins(1, 10.0 ** detector.log10_tail(1, 1.0))
        case "gumbel-dual" | "sglang-gumbel" | "sglang-dual":
            return 0.875, _exponentials((1.0,))
        case "vllm-gumbel" | "vllm-dual":  # a score exceeds that of its exact uniform by less than 2^-24
            exact = _exponentials(tuple(float(w) for w in kind.weights_M))
            return 0.875, lambda tilt: exact(tilt) + tilt * 2.0**-24
    raise ValueError(f"{detector.scheme}: its scores are not independent from context to context")


def _coins(count: int, p: float) -> Callable[[float], float]:
    return lambda tilt: count * math.log1p(p * math.expm1(tilt))


def _exponentials(weights: tuple[float, ...]) -> Callable[[float], float]:
    return lambda tilt: -sum(math.log1p(-weight * tilt) for weight in weights)


def effect_of(detector: Detector, values_N: F64) -> dict[str, Any]:
    """How large what was found is, with a 95 % interval and what it is without the mark."""
    n = len(values_N)
    marks: Any = detector.marks if isinstance(detector, NativeDetector) else detector
    scheme = getattr(marks, "name", detector.scheme)
    if scheme in ("kgw", "hf-kgw"):
        under = marks.gamma if scheme == "kgw" else 10.0 ** detector.log10_tail(1, 1.0)
        green = round(float(values_N.sum()))
        low, high = clopper_pearson(n, green)
        return _effect("share of green tokens", green / n if n else under, (low, high), under, n)
    under, scale = 1.0, 1.0
    if scheme in ("synthid", "hf-synthid"):
        under, scale = 0.5, 1.0 / (marks.depth if scheme == "synthid" else len(marks._params.keys))
    mean = float(values_N.mean()) * scale if n else under
    half = 1.96 * float(values_N.std()) * scale / math.sqrt(n) if n > 1 else math.inf
    name = "mean score" if scale == 1.0 else "share of tournament bits won"
    return _effect(name, mean, (max(0.0, mean - half), min(mean + half, 1e9 if scale == 1.0 else 1.0)), under, n)


def _effect(name: str, value: float, ci95: tuple[float, float], under: float, n: int) -> dict[str, Any]:
    return {"name": name, "value": value, "ci95": list(ci95), "under_null": under, "pairs": n}
