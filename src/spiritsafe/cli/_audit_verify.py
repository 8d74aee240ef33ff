"""`spiritsafe audit verify`: check a case, or an attestation, that somebody else made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spiritsafe.cli._output import Json, print_json
from spiritsafe.cli._progress import watching

if TYPE_CHECKING:
    from spiritsafe.audit._verify import CaseVerification

__all__ = ["register"]

_NAMES = {
    "bytes": "every file is as it was when the case was made",
    "signatures": "who signed plan and case, and the timestamps",
    "time_order": "commitment, release, plan, first question, in this order",
    "plan": "all that the plan says was asked, and nothing else",
    "recompute": "every number comes out the same again",
}


def register(audit: typer.Typer) -> None:
    audit.command(
        epilog="Examples: spiritsafe audit verify CASE.zip --signer auditor.pub --tsa authority.pem · "
        "spiritsafe audit verify attestation.dsse.json --signer lab.pub --files run/"
    )(verify)


def verify(
    case: Annotated[
        Path, typer.Argument(metavar="CASE.zip", help="A case, or an attestation of `audit attest` (JSON).")
    ],
    signer: Annotated[
        Path | None,
        typer.Option(
            "--signer", metavar="PUB", help="A file with the signer's public key (PEM or hex), known from elsewhere."
        ),
    ] = None,
    tsa: Annotated[
        Path | None,
        typer.Option("--tsa", metavar="ROOT", help="Root certificates of time-stamping authorities you trust (PEM)."),
    ] = None,
    files: Annotated[
        Path | None, typer.Option("--files", metavar="DIR", help="Attestation: a folder with files it speaks of.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a case offline: bytes, signatures, order in time, plan kept, every number. Exit 1 if a check fails."""
    from spiritsafe.audit._sign import load_public, load_roots
    from spiritsafe.errors import BadInput

    key = None if signer is None else load_public(signer)
    roots = None if tsa is None else load_roots(tsa)
    try:
        with case.open("rb") as file:
            zipped = file.read(2) == b"PK"
    except OSError as error:
        raise BadInput(f"{case}: cannot be read ({error.strerror}); check the path") from None
    if not zipped and case.suffix == ".json":
        if tsa is not None:
            raise BadInput("--tsa: an attestation has no timestamp; leave it out")
        _attestation(case, key, files, as_json)
        return
    if not zipped:
        raise BadInput(
            f"{case}: no zip file, so no case; give the CASE.zip that `audit run` made, or a .json attestation"
        )
    if files is not None:
        raise BadInput("--files: a case has its files in it; leave it out")
    from spiritsafe.audit._verify import verify_case

    with watching(quiet=as_json) as progress:
        found = verify_case(case, signer=key, tsa=roots, progress=progress)
    if as_json:
        print_json(found.to_dict())
    _say(case, found, as_json)
    if not found.ok:
        raise typer.Exit(1)


def _attestation(file: Path, key: bytes | None, files: Path | None, as_json: bool) -> None:
    from spiritsafe.audit._attested import verify_attestation

    found = verify_attestation(file, signer=key, files=files)
    if as_json:
        print_json(found.to_dict())
    else:
        print(found.render())
    if not found.ok:
        raise typer.Exit(1)


def _say(case: Path, found: CaseVerification, as_json: bool) -> None:
    """For people; with --json only the reasons, on stderr."""
    for name, state in found.checks.items():
        shown = name.replace("_", " ")
        if not as_json and name in found.unseen:
            print(f"{'-':<11} {shown:<11} {found.reasons[name][0]}")
            continue
        if not as_json:
            print(f"{state:<11} {shown:<11} {_NAMES[name]}")
        for line in found.reasons[name]:
            typer.echo(f"            {line}" if not as_json else f"{name}: {line}", err=as_json)
    for note in found.notes:
        typer.echo(f"note: {note}", err=as_json)
    if as_json:
        return
    print(f"\n{found.finding.grade}: {found.finding.statement}")
    for account in found.finding.accounts:
        print(f"whose replies: {account}")
    if found.ok:
        print(
            "\nA second verifier, two short files of Python's standard library that share no code with this one, is in "
            f"the case:\n  unzip {case} 'verify_*.py' && python3 verify_case.py {case}"
        )
