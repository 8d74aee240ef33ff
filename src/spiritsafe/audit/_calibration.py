"""The calibration that ships with a release: how often each test rejected innocents, and by which judges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from spiritsafe import pvalue
from spiritsafe.config import StrictModel
from spiritsafe.runs import hash_path, hash_value

__all__ = ["Calibration", "Counted", "Row", "counted", "judges_hash", "load_calibration", "too_often"]

C = TypeVar("C", bound="Counted")
_FAMILY = 0.01
_JUDGES = ("audit/tests", "pvalue", "watermark")


class Counted(StrictModel):
    """Trials of one test: one secret after another that innocents had no part in.

    redrawn: which secret was fresh in a trial, and over what.  independent: whether trials were, so that counting them
    is a test.  rejected: level → trials whose p was no larger.  smallest: log10 of the smallest p.
    """

    test: str
    name: str
    redrawn: str
    innocents: str
    trials: int
    independent: bool
    rejected: dict[str, int]
    smallest: float


class Row(Counted):
    """As the study has it.

    code: the tree that ran.  package: hash of all its sources, as `audit plan` freezes it.  judges: hash of those that
    a p-value comes from.
    """

    seed: int
    code: str
    package: str
    judges: str
    date: str


class Calibration(StrictModel):
    """What ships.  students: how many trained models there were among the innocents."""

    format: Literal["spiritsafe-calibration/1"] = "spiritsafe-calibration/1"
    students: int
    rows: tuple[Row, ...]


def load_calibration() -> Calibration:
    """What was measured before this release."""
    file = resources.files("spiritsafe.audit") / "calibration.json"
    return Calibration.model_validate_json(file.read_bytes())


def judges_hash() -> str:
    """SHA-256 over the sources that a p-value comes from: tests, p-values, marks."""
    root = Path(__file__).parents[1]
    files = sorted(file for part in _JUDGES for file in (root / part).rglob("*.py"))
    return hash_value([[str(file.relative_to(root)), hash_path(file)] for file in files])


def counted(log10_p: Sequence[float], levels: Sequence[float]) -> dict[str, Any]:
    """`trials`, `rejected` and `smallest` of a row."""
    limits = {f"{level:g}": math.log10(level) + 1e-12 for level in levels}
    return {
        "trials": len(log10_p),
        "rejected": {name: sum(p <= limit for p in log10_p) for name, limit in limits.items()},
        "smallest": round(min(log10_p, default=0.0), 3),
    }


def too_often(rows: Sequence[C]) -> list[tuple[C, str]]:
    """Rows and levels at which more was rejected than the level allows: one-sided exact binomial tests, Bonferroni over
    all of them, so that a table of honest tests shows one such entry with a chance of at most 1 %. Rows whose trials
    are not independent are not counted."""
    counted = [(row, level) for row in rows if row.independent for level in row.rejected]
    return [
        (row, level)
        for row, level in counted
        if 10 ** pvalue.binomial(row.trials, float(level), row.rejected[level]) <= _FAMILY / len(counted)
    ]
