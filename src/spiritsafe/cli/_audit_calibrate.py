"""`spiritsafe audit calibrate`: how often the tests reject innocents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiritsafe.cli._output import Json, print_json, print_table
from spiritsafe.cli._progress import watching

if TYPE_CHECKING:
    from spiritsafe.audit._calibration import Counted, Row

__all__ = ["register"]

_TESTS = ("radioactivity", "twins", "canaries", "lineage", "equality", "similarity")


def register(audit: typer.Typer) -> None:
    audit.command(
        epilog="Examples: spiritsafe audit calibrate --test twins · spiritsafe audit calibrate --case CASE.zip"
    )(calibrate)


def calibrate(
    test: Annotated[str | None, typer.Option("--test", metavar="NAME", help="Only this test.")] = None,
    case: Annotated[
        Path | None,
        typer.Option("--case", metavar="CASE.zip", help="Your own innocents: this case's controls, fresh secrets."),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="With --case: trials a test and control.")] = 1000,
    as_json: Json = False,
) -> None:
    """How often each test rejects models that are innocent: as measured for this release, or on a case's controls."""
    from spiritsafe.errors import BadInput

    if case is not None:
        _on_controls(case, test, trials, as_json)
        return
    if test is not None and test not in _TESTS:
        raise BadInput(f"--test {test}: no such test; there are {', '.join(_TESTS)}")
    from spiritsafe.audit._calibration import judges_hash, load_calibration

    known, now = load_calibration(), judges_hash()
    rows = [row for row in known.rows if test in (None, row.test)]
    missing = [name for name in _TESTS if test in (None, name) and not any(row.test == name for row in rows)]
    if as_json:
        facts = [_facts(row, rows) | {"judges_unchanged": row.judges == now} for row in rows]
        print_json({"students": known.students, "rows": facts, "missing": missing})
        return
    if rows:
        _print(rows)
        print(f"\n{known.students} of the real models are students that were trained for this.")
        for line in _measured(rows, now):
            print(line)
    for name in missing:
        print(f"{name}: was not calibrated")


def _on_controls(case: Path, test: str | None, trials: int, as_json: bool) -> None:
    from spiritsafe.audit._redraw import calibrate_case
    from spiritsafe.errors import BadInput

    with watching(quiet=as_json) as progress:
        rows, notes = calibrate_case(case, trials, progress, test)
    if not rows:
        raise BadInput(f"{case}: nothing to draw again ({'; '.join(notes)})")
    if as_json:
        print_json({"rows": [_facts(row, rows) for row in rows], "notes": notes})
        return
    _print(rows)
    print(
        "\nConditional on what each control answered. With fresh keys the texts are still those of the case's own key."
    )
    for note in notes:
        print(note)


def _print(rows: Sequence[Counted]) -> None:
    from spiritsafe.audit._calibration import too_often

    above = [id(row) for row, _ in too_often(rows)]
    header = ("test", "redrawn", "innocents", "trials", "rejected", "smallest p", "")
    lines = []
    for row in rows:
        rejected = ", ".join(f"{count} at {level}" for level, count in row.rejected.items())
        verdict = "ABOVE NOMINAL" if id(row) in above else "not above nominal" if row.independent else "not independent"
        lines.append(
            (f"{row.test}: {row.name}", row.redrawn, row.innocents, str(row.trials), rejected,
             f"{10**row.smallest:.2g}", verdict)
        )  # fmt: skip
    print_table(header, lines)


def _facts(row: Counted, rows: Sequence[Counted]) -> dict[str, Any]:
    from spiritsafe.audit._calibration import too_often

    above = [level for other, level in too_often(rows) if other is row]
    return row.model_dump() | {"above_nominal": above}


def _measured(rows: Sequence[Row], now: str) -> list[str]:
    """When, on which code, and whether its judges are those that are installed."""
    from spiritsafe.audit._frozen import code_hash

    lines, package = [], code_hash()
    for judges, there in dict.fromkeys((row.judges, row.package) for row in rows):
        some = [row for row in rows if (row.judges, row.package) == (judges, there)]
        of = "All rows" if len(some) == len(rows) else f"{len(some)} of {len(rows)} rows"
        trees = ", ".join(dict.fromkeys(row.code[:12] + row.code[40:] for row in some))
        dates = ", ".join(dict.fromkeys(row.date for row in some))
        if there == package:
            how = "this very version"
        elif judges == now:
            how = "the judges of this version; other code has changed since"
        else:
            how = "other judges: they have CHANGED SINCE; measure again (make proof ARGS=audit_null)"
        lines.append(f"{of}: measured {dates} on {trees}, with {how}.")
    return lines
