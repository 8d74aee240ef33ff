"""The calibration that ships with a release: how often each test rejected innocents, and by which judges."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from spiritsafe import pvalue
from spiritsafe.config import StrictModel
from spiritsafe.runs import hash_path, hash_value

__all__ = ["Calibration", "Row", "judges_hash", "load_calibration", "too_often"]

_FAMILY = 0.01
_JUDGES = ("audit/tests", "pvalue", "watermark")


class Row(StrictModel):
    """Trials of one test, one secret of innocents after another.

    redrawn: which secret was fresh in a trial, and what it was tried on.  independent: whether trials were, so that
    counting them is a test.  rejected: level → trials whose p was no larger.  smallest: log10 of the smallest p.
    code: the tree that ran.  judges: hash of the sources that judge (`judges_hash`).
    """

    test: str
    name: str
    redrawn: str
    innocents: str
    trials: int
    independent: bool
    rejected: dict[str, int]
    smallest: float
    seed: int
    code: str
    judges: str
    date: str


class Calibration(StrictModel):
    """students: how many trained models there were among the innocents."""

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


def too_often(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Rows and levels at which more was rejected than the level allows: one-sided exact binomial tests, Bonferroni over
    all of them, so that a table of honest tests shows one such entry with a chance of at most 1 %. Rows whose trials
    are not independent are not counted."""
    counted = [(row, level) for row in rows if row.independent for level in row.rejected]
    return [
        (row, level)
        for row, level in counted
        if 10 ** pvalue.binomial(row.trials, float(level), row.rejected[level]) <= _FAMILY / len(counted)
    ]
