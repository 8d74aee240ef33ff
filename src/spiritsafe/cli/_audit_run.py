"""`spiritsafe audit run`: put a frozen plan to a suspect, and make the case of what it said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spiritsafe.cli._output import Json, print_json
from spiritsafe.cli._progress import watching

__all__ = ["register"]


def register(audit: typer.Typer) -> None:
    audit.command(
        epilog="Examples: spiritsafe audit run PLAN.yaml --suspect suspect.gguf · "
        "spiritsafe audit run PLAN.yaml --suspect https://api.example.com/v1"
    )(run)


def run(
    file: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="A plan that `audit plan` froze.")],
    suspect: Annotated[
        str,
        typer.Option(
            "--suspect", metavar="MODEL|BASE_URL", help="A GGUF file, a model folder, a hub id, or an API's base URL."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="CASE.zip", help="The case; PLAN.case.zip beside the plan by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask everything the plan says, write it all down, and make the case. Run it again to go on where it stopped."""
    import asyncio

    from spiritsafe.audit._case import build_case
    from spiritsafe.audit._freeze import load_frozen
    from spiritsafe.audit._run import run_audit
    from spiritsafe.errors import BadInput
    from spiritsafe.report._case import render_case

    case = out or file.with_suffix(".case.zip")
    if not case.parent.is_dir():
        raise BadInput(f"--out {case}: no such folder; make it first")
    if case.is_dir():
        raise BadInput(f"--out {case}: a folder; name the file that the case is to be, such as CASE.zip")
    frozen = load_frozen(file)
    with watching(quiet=as_json) as progress:
        for note in frozen.notes:
            progress.say(f"note: {note}")
        folder = asyncio.run(run_audit(frozen, suspect, progress=progress))
    judged = build_case(frozen, folder, case, render_case)
    found = judged.finding
    if as_json:
        facts = {"case": str(case), "plan": frozen.hash, "attempts": judged.attempts}
        print_json(facts | {"finding": found.to_dict()})
        return
    print(f"{found.grade}: {found.statement}\n")
    for account in found.accounts:
        print(f"whose replies: {account}")
    for outcome in judged.outcomes:
        for note in outcome.notes:
            print(f"{outcome.test}: {note}")
    print(f"{case}: the case. Check it with: spiritsafe audit verify {case}")
