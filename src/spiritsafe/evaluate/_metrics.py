"""From sums by exchange to the rows of metrics.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritsafe.evaluate._bootstrap import Resampler, recovered
from spiritsafe.evaluate._heldout import Yardstick
from spiritsafe.evaluate._score import Scores
from spiritsafe.evaluate._untrained import Untrained

__all__ = ["fidelity", "recovered_metrics", "student_intervals", "untrained_metrics"]

Sums = NDArray[np.float64]


def fidelity(scores: Scores, measure: Yardstick) -> dict[str, Any]:
    """nll, kl and top1_agreement over all exchanges; the last two null where they have no meaning."""
    return _rates(scores, float(measure.units.sum()), measure.kl_kind is not None)


def student_intervals(
    student: Scores, teacher_nll: Sums | None, measure: Yardstick, resampler: Resampler
) -> dict[str, Any]:
    """nll_gap to the teacher, and 95 % intervals of gap, KL and agreement."""
    prompts = measure.prompts
    row: dict[str, Any] = {"nll_gap": None}
    if teacher_nll is not None:
        gap = student.nll - teacher_nll
        row["nll_gap"] = float(gap.sum() / measure.units.sum())
        row["nll_gap_ci95"] = _ratio(resampler, _by_prompt(prompts, gap), _by_prompt(prompts, measure.units))
    if measure.kl_kind is not None:
        taught = _by_prompt(prompts, student.taught)
        row["kl_ci95"] = _ratio(resampler, _by_prompt(prompts, student.kl), taught)
        row["top1_agreement_ci95"] = _ratio(resampler, _by_prompt(prompts, student.agree), taught)
    return row


def recovered_metrics(
    teacher_nll: Sums | None, base: Scores, student: Scores, measure: Yardstick, resampler: Resampler
) -> dict[str, Any]:
    """The `recovered` entry; with value null and the reason under `refused` where it has no meaning."""
    if teacher_nll is None:
        reason = "the teacher's likelihoods are unknown: it gave no log-probabilities and its weights are not here"
        return {"metric": "nll", "value": None, "ci95": None, "refused": reason}
    sums = [_by_prompt(measure.prompts, s) for s in (teacher_nll, base.nll, student.nll, measure.units)]
    found = recovered(sums[0], sums[1], sums[2], sums[3], resampler)
    entry: dict[str, Any] = {"metric": "nll", "value": found.value}
    entry["ci95"] = None if found.ci95 is None else list(found.ci95)
    return entry if found.refused is None else entry | {"refused": found.refused}


def untrained_metrics(untrained: Untrained, student: Scores, measure: Yardstick) -> dict[str, Any]:
    """The best prune on everything; every candidate, and the student, on the exchanges all candidates were run on."""
    rows, has_kl = untrained.screened, measure.kl_kind is not None
    units = float(measure.units[rows].sum())
    return {
        "layers": len(untrained.prune.keep),
        "params": untrained.params,
        **fidelity(untrained.scores, measure),
        "strategy": untrained.prune.strategy,
        "kept_layers": list(untrained.prune.keep),
        "screened": {
            "n_exchanges": len(rows),
            "n_tokens": int(units),
            "student": _rates(student.rows(rows), units, has_kl),
            "candidates": [
                {"strategy": prune.strategy, "layers": len(prune.keep), **_rates(scores, units, has_kl)}
                for prune, scores in untrained.candidates
            ],
        },
    }


def _rates(scores: Scores, units: float, has_kl: bool) -> dict[str, Any]:
    taught = float(scores.taught.sum())
    known = has_kl and taught > 0
    return {
        "nll": float(scores.nll.sum() / units),
        "kl": float(scores.kl.sum() / taught) if known else None,
        "top1_agreement": float(scores.agree.sum() / taught) if known else None,
    }


def _by_prompt(prompts: NDArray[np.intp], values: Sums) -> Sums:
    return np.asarray(np.bincount(prompts, weights=values), np.float64)


def _ratio(resampler: Resampler, top: Sums, bottom: Sums) -> list[float] | None:
    interval = resampler.interval(lambda a, b: a / np.maximum(b, 1e-12), top, bottom)
    return None if interval is None else list(interval)
