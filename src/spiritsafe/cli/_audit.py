"""`spiritsafe audit …`: where did this model come from? Here: freeze a plan, timestamp what was published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiritsafe.cli import _audit_attest, _audit_calibrate, _audit_run, _audit_verify
from spiritsafe.cli._output import Json, print_json

if TYPE_CHECKING:
    from spiritsafe.audit._freeze import Frozen

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    audit = typer.Typer(
        help="Where did this model come from? A plan first, then questions, then a case that others can check.",
        no_args_is_help=True,
    )
    app.add_typer(audit, name="audit")
    audit.command(epilog="Example: spiritsafe audit plan PLAN.yaml")(plan)
    audit.command(epilog="Example: spiritsafe audit timestamp COMMITMENT.json --tsa https://freetsa.org/tsr")(timestamp)
    _audit_run.register(audit)
    _audit_verify.register(audit)
    _audit_attest.register(audit)
    _audit_calibrate.register(audit)


def plan(
    file: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="The plan: see docs/audit/plan.md.")],
    again: Annotated[
        bool, typer.Option("--again", help="Replace a frozen plan; it is kept, and counted in the new one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Freeze a plan before the first question: read, check and hash all it rests on; sign and timestamp it."""
    from spiritsafe.audit._anchors import unanchored, warnings
    from spiritsafe.audit._freeze import freeze

    frozen = freeze(file, again=again)
    facts = _facts(frozen) | {"unanchored": unanchored(frozen), "warnings": warnings(frozen)}
    if as_json:
        print_json(facts)
    else:
        _say(frozen, facts)


def timestamp(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What you are about to publish; only its hash is sent.")],
    tsa: Annotated[str, typer.Option("--tsa", metavar="URL", help="A time-stamping authority (RFC 3161).")],
    as_json: Json = False,
) -> None:
    """Have a time-stamping authority sign that a file existed now: FILE.tsr, which a plan takes up."""
    from spiritsafe.audit._tsa import claimed_time
    from spiritsafe.audit._tsa import timestamp as stamp
    from spiritsafe.errors import BadInput
    from spiritsafe.runs import atomic_write

    out = file.with_name(file.name + ".tsr")
    if out.exists():
        raise BadInput(f"{out}: exists, and an older timestamp is worth more; move it away if it is of another file")
    try:
        token = stamp(tsa, file.read_bytes())
        atomic_write(out, token)
    except OSError as error:
        raise BadInput(f"{error.filename or file}: {error.strerror}; check the path") from None
    time = claimed_time(token)
    if as_json:
        print_json({"timestamp": str(out), "time": None if time is None else time.isoformat(), "tsa": tsa})
    else:
        print(f"{out}: {file.name} existed on {time:%Y-%m-%d at %H:%M:%S} UTC, says {tsa}")


def _facts(frozen: Frozen) -> dict[str, Any]:
    document, plan = frozen.document, frozen.plan
    tests = [
        {
            "test": name,
            "kind": test.kind,
            "primary": place == 0,
            "null": document["nulls"][name],
            "family": frozen.families[name],
            "keys_to_open": len(frozen.leaves.get(name, ())),
        }
        for place, test in enumerate(plan.tests)
        for name in [test.name or test.kind]
    ]
    return {
        "frozen": str(frozen.file.with_suffix(".frozen.json")),
        "hash": frozen.hash,
        "frozen_at": document["frozen_at"],
        "name": plan.name,
        "question": plan.question,
        "alpha": plan.alpha,
        "stop": plan.stop.rule,
        "tests": tests,
        "controls": list(plan.controls),
        "inputs": len(document["inputs"]),
        "decoy_seed": document["decoy_seed"],
        "timestamp": None if frozen.timestamp is None else str(frozen.timestamp),
        "signer": plan.signer,
        "superseded": list(document["superseded"]),
        "abandoned": document["abandoned"],
    }


def _say(frozen: Frozen, facts: dict[str, Any]) -> None:
    print(f"{facts['frozen']}: frozen {facts['frozen_at']}\nhash {facts['hash']}\n")
    print(f"question: {facts['question']}")
    print(f"alpha {facts['alpha']:g}, stop rule: {facts['stop']}; {facts['inputs']} input files, "
          f"{len(facts['controls'])} controls\n")  # fmt: skip
    for place, test in enumerate(facts["tests"], 1):
        many = "1 hypothesis" if test["family"] == 1 else f"{test['family']:,} committed hypotheses"
        print(f"{place}. {test['test']}{' (decides)' if test['primary'] else ''}: {many}\n   null: {test['null']}")
    if len(facts["tests"]) > 1:
        print("\na test after the first counts only while every test before it rejects")
    if facts["timestamp"]:
        print(f"\ntimestamped: {facts['timestamp']}")
    if facts["signer"]:
        print(f"signed with {facts['signer']}")
    if facts["superseded"]:
        count, runs = len(facts["superseded"]), facts["abandoned"]
        print(f"replaces {count} frozen before, under which {runs} runs were started; the case says so")
    for line in facts["unanchored"]:
        print(f"unanchored: {line}")
    for line in facts["warnings"]:
        print(f"WARNING: {line}")
