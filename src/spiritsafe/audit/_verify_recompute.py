"""Check 5, recompute: judge the records again; every number and the finding have to come out the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from spiritsafe.audit._archive import read_json
from spiritsafe.audit._bom import bill_of_materials
from spiritsafe.audit._case import Judged, code_of, judge
from spiritsafe.audit._types import Record, Test
from spiritsafe.audit._verify_check import Check, Opened

if TYPE_CHECKING:
    from spiritsafe.audit._frozen import Frozen

__all__ = ["check_recompute", "difference"]

_TOLERANCE = 1e-9


def check_recompute(
    case: Opened,
    frozen: Frozen,
    tests: Sequence[Test],
    attempts: int,
    records: Sequence[Record],
    controls: Mapping[str, Sequence[Record]],
    check: Check,
) -> Judged:
    """Raises:
    BadInput: a record holds what no answer can be.
    """
    judged = judge(frozen, tests, records, controls, attempts)
    said, found = read_json(case.folder / "results.json", "results.json"), judged.to_dict()
    if not check.must(isinstance(said, dict) and "code" in said, "results.json: not the results of a case"):
        return judged
    ours = said.pop("code") == code_of()
    page = case.read("report.html").decode("utf-8", "replace") if case.has("report.html") else None
    statement = said.get("finding", {}).get("statement")
    if page is not None:
        check.must(str(escape(statement)) in page, "report.html: does not say what was found")
    else:
        check.notes.append("there is no report.html")
    if not ours:
        check.notes.append("another version of spiritsafe wrote its sentences: numbers are compared, and not words")
        said, found = without_words(said), without_words(found)
    if where := difference(said, found):
        check.failures.append(f"results.json: {where}")
    bill = bill_of_materials(frozen.document, read_json(case.folder / "subject.json", "subject.json"), judged.finding)
    if ours and difference(read_json(case.folder / "mlbom.cdx.json", "mlbom.cdx.json"), bill):
        check.failures.append("mlbom.cdx.json: not the bill of this subject and finding")
    return judged


def without_words(results: Mapping[str, Any]) -> dict[str, Any]:
    """results.json without what is said in sentences."""

    def bare(outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in one.items() if key != "notes"} for one in outcomes]

    controls = {name: bare(some) for name, some in results["controls"].items()}
    finding = {key: value for key, value in results["finding"].items() if key != "statement"}
    return {**results, "tests": bare(results["tests"]), "controls": controls, "finding": finding}


def difference(said: Any, found: Any, where: str = "") -> str | None:
    """Where two JSON values differ, numbers by more than 1e-9; None if nowhere."""
    if isinstance(said, dict) and isinstance(found, dict):
        for key in sorted({*said, *found}, key=str):
            if key not in said or key not in found:
                return f"{where}.{key}"[1:] + (" is missing" if key not in said else " is nothing that was found")
            if inner := difference(said[key], found[key], f"{where}.{key}"):
                return inner
        return None
    if isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        pairs = enumerate(zip(said, found, strict=True))
        return next((inner for i, (a, b) in pairs if (inner := difference(a, b, f"{where}.{i}"))), None)
    if _is_number(said) and _is_number(found):
        if math.isclose(said, found, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            return None
    elif type(said) is type(found) and said == found:
        return None
    return f"{where[1:]} is {str(said)[:60]}, recomputed {str(found)[:60]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
