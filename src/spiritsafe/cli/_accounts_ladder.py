"""`spiritsafe accounts ladder …`: where accounts and clusters stand on the ladder, and a person's decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from spiritsafe.cli._accounts_store import GUARD_FILE, By, GuardFile, with_ladder
from spiritsafe.cli._output import Json, print_json, print_table

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from spiritsafe.serve._config import GuardConfig, Step
    from spiritsafe.serve._key_store import KeyStore
    from spiritsafe.serve._ladder import Ladder

__all__ = ["register"]

_COLUMNS = ("subject", "step", "shadow", "decided_by", "at", "reason")
Subject = Annotated[
    str, typer.Argument(metavar="SUBJECT", help="An account's id or name, or a cluster's as cluster:NAME.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why; the ledger keeps it for good.")]


def register(accounts: typer.Typer) -> None:
    ladder = typer.Typer(help="The ladder: status, history, step, lift.", no_args_is_help=True)
    accounts.add_typer(ladder, name="ladder")
    ladder.command(epilog="Example: spiritsafe accounts ladder status --json")(status)
    ladder.command(epilog='Example: spiritsafe accounts ladder history "Ada Ltd"')(history)
    ladder.command(
        epilog='Examples: spiritsafe accounts ladder step "Ada Ltd" price_tier --reason "coverage grows" --by ann · '
        'spiritsafe accounts ladder step cluster:c4 suspend --reason "bulk copying" --appeal "mail appeals@example.org"'
    )(step)
    ladder.command(epilog='Example: spiritsafe accounts ladder lift "Ada Ltd" --reason "they explained"')(lift)


def status(config: GuardFile = GUARD_FILE, as_json: Json = False) -> None:
    """Where everybody stands who was ever put on a step."""

    async def work(ladder: Ladder, store: KeyStore, guard: GuardConfig) -> dict[str, Any]:
        from spiritsafe.serve._account_rows import ladder_dict

        return {"shadow": guard.ladder.shadow, "ladder": [ladder_dict(state) for state in await ladder.states()]}

    found = with_ladder(config, work)
    if as_json:
        print_json(found)
        return
    if found["shadow"]:
        typer.echo("note: ladder.shadow is true in the config, so no step acts", err=True)
    _print(found["ladder"])


def history(subject: Subject, config: GuardFile = GUARD_FILE, as_json: Json = False) -> None:
    """Every decision about an account or a cluster, oldest first. --json has the features that led to each."""

    async def work(ladder: Ladder, store: KeyStore, guard: GuardConfig) -> list[dict[str, Any]]:
        from spiritsafe.serve._account_rows import ladder_dict

        decisions = await ladder.history(await _subject(store, subject))
        return [ladder_dict(decision.state) | {"features": decision.features} for decision in decisions]

    found = with_ladder(config, work)
    if as_json:
        print_json({"decisions": found})
    else:
        _print(found)


def step(
    subject: Subject,
    step: Annotated[
        str,
        typer.Argument(
            metavar="STEP", help="observe, notify, cluster_cap, price_tier, output_policy, review or suspend."
        ),
    ],
    reason: Reason,
    appeal: Annotated[str | None, typer.Option("--appeal", help="How to object, as those suspended are told.")] = None,
    by: By = "operator",
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Put an account or a cluster on a step, up or down. The ledger has it before it acts."""
    _decide(config, subject, step, reason, by, appeal, as_json)


def lift(
    subject: Subject,
    reason: Reason,
    by: By = "operator",
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Take an account or a cluster off every step; whom its step suspended is restored."""
    _decide(config, subject, "observe", reason, by, None, as_json)


def _decide(config: Path, subject: str, step: str, reason: str, by: str, appeal: str | None, as_json: bool) -> None:
    async def work(ladder: Ladder, store: KeyStore, guard: GuardConfig) -> dict[str, Any]:
        from spiritsafe.serve._account_rows import ladder_dict
        from spiritsafe.serve._account_text import APPEAL

        about, wanted = await _subject(store, subject), cast("Step", step)  # the ladder checks it
        return ladder_dict(await ladder.apply(about, wanted, reason=reason, decided_by=by, appeal=appeal or APPEAL))

    state = with_ladder(config, work)
    if as_json:
        print_json(state)
        return
    shadow = ", in shadow: recorded, and nothing changes" if state["shadow"] else ""
    print(f"{state['subject']}: {state['step']}{shadow}; {state['reason']} ({state['decided_by']})")


async def _subject(store: KeyStore, given: str) -> str:
    """As the ladder names it."""
    if given.startswith("cluster:"):
        return given
    return f"account:{(await store.show(given.removeprefix('account:'))).id}"


def _print(states: list[dict[str, Any]]) -> None:
    rows = [
        [("yes" if state["shadow"] else "") if c == "shadow" else str(state[c]) for c in _COLUMNS] for state in states
    ]
    print_table(_COLUMNS, rows)
