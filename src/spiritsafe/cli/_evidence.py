"""`spiritsafe evidence …`: what a guard sets aside to prove something later: canaries and twin replies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from spiritsafe.cli._accounts_store import GUARD_FILE, AccountRef, By, GuardFile
from spiritsafe.cli._output import Json, print_json, print_table

if TYPE_CHECKING:
    from spiritsafe.ledger import Ledger
    from spiritsafe.serve._canaries import Canaries, Canary
    from spiritsafe.serve._config import GuardConfig
    from spiritsafe.state import Database

__all__ = ["register"]

T = TypeVar("T")
_CanaryId = Annotated[str, typer.Argument(metavar="ID", help="The canary's id.")]


def register(app: typer.Typer) -> None:
    evidence = typer.Typer(
        help="What the guard sets aside to prove something later: canaries, twin replies.", no_args_is_help=True
    )
    app.add_typer(evidence, name="evidence")
    canary = typer.Typer(help="Canaries: new, list, show, retire.", no_args_is_help=True)
    evidence.add_typer(canary, name="canary")
    canary.command(
        epilog="Examples: spiritsafe evidence canary new --generate 1000 · "
        "spiritsafe evidence canary new --prompt 'Which …?' --variants answers.txt"
    )(new)
    canary.command("list", epilog="Example: spiritsafe evidence canary list --json")(list_canaries)
    canary.command(epilog="Example: spiritsafe evidence canary show can_0123456789ab --json")(show)
    canary.command(epilog="Example: spiritsafe evidence canary retire can_0123456789ab")(retire)
    twins = typer.Typer(help="Twin replies: export, erase.", no_args_is_help=True)
    evidence.add_typer(twins, name="twins")
    twins.command(epilog="Example: spiritsafe evidence twins export --out twins.jsonl --model smollm2-135m")(export)
    twins.command(epilog='Example: spiritsafe evidence twins erase "Ada Ltd" --reason "consent withdrawn"')(erase)


def new(
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The question; one that nobody asks who has not seen it.")
    ] = None,
    variants: Annotated[
        Path | None, typer.Option("--variants", metavar="FILE", help="Its answers, one a line; one is published.")
    ] = None,
    generate: Annotated[
        int | None, typer.Option("--generate", metavar="N", help="Or make up a question and N answers.")
    ] = None,
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Plant a canary: commit to all its answers in the ledger, then show the one to publish."""
    from spiritsafe.errors import BadInput
    from spiritsafe.serve._canary_text import invent

    if (generate is None) == (variants is None) or (prompt is None) != (variants is None):
        raise BadInput("canary new: give --prompt TEXT and --variants FILE, or --generate N")
    if generate is not None:
        question, answers = invent(generate)
    else:
        question, answers = str(prompt), _lines(Path(str(variants)))
    made = _run(config, lambda canaries: canaries.new(question, answers))
    if as_json:
        print_json(_facts(made) | {"answer": made.answer})
        return
    print(f"{made.id}: committed to {len(made.variants)} answers, {made.commit}\n")
    print(f"question: {made.prompt}\nanswer:   {made.answer}\n")
    print("publish question and answer together, where only those who copy will find them; the rest stays sealed")


def list_canaries(config: GuardFile = GUARD_FILE, as_json: Json = False) -> None:
    """All canaries, without their answers."""
    found = _run(config, lambda canaries: canaries.list())
    if as_json:
        print_json({"canaries": [_facts(canary) for canary in found]})
        return
    rows = [[c.id, c.state, str(len(c.variants)), c.commit[:16], c.prompt[:60]] for c in found]
    print_table(["id", "state", "answers", "commitment", "question"], rows)


def show(
    canary_id: _CanaryId,
    secret: Annotated[
        bool, typer.Option("--secret", help="THE SEALED ANSWERS TOO: once others have them, it proves nothing new.")
    ] = False,
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """One canary with its published answer. --json gives the opening that `verify_canary` and an audit check."""
    from spiritsafe.errors import Refused

    canary = _run(config, lambda canaries: canaries.show(canary_id))
    if canary.state == "pending" and not secret:
        raise Refused(f"canary {canary.id}: its commitment never reached the ledger; retire it and make another")
    if as_json:
        print_json(_facts(canary) | canary.opened(all_variants=secret))
        return
    print(f"{canary.id}: {canary.state}, {len(canary.variants)} answers, {canary.commit}\n")
    print(f"question: {canary.prompt}\nanswer:   {canary.answer}")
    if secret:
        print(f"\nsealed, with salt {canary.salt.hex()}:")
        for index, variant in enumerate(canary.variants):
            print(f"{'*' if index == canary.published else ' '} {index}  {variant}")


def retire(canary_id: _CanaryId, config: GuardFile = GUARD_FILE, as_json: Json = False) -> None:
    """Answer it no longer. It goes on proving: its answers stay in the database."""
    canary = _run(config, lambda canaries: canaries.retire(canary_id))
    if as_json:
        print_json(_facts(canary))
    else:
        print(f"{canary.id}: retired")


def export(
    out: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="A new file; others may not read it.")],
    account: Annotated[str | None, typer.Option("--account", metavar="ID", help="This account's pairs only.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="This model's pairs only.")] = None,
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Open twin pairs for an audit: both replies, coin and salt. THE SEALED REPLIES ARE IN THE FILE: keep it secret."""
    from spiritsafe.errors import BadInput

    if out.exists():
        raise BadInput(f"--out {out}: exists; choose another name")

    async def work(db: Database, guard: GuardConfig) -> tuple[int, int]:
        from spiritsafe.serve._account_store import AccountStore
        from spiritsafe.serve._twins import committed_twins

        account_id = None if account is None else (await AccountStore(db, guard).show(account)).id
        written = await _write(db, out, account_id, model)
        return written, await committed_twins(db, account=account_id, model=model)

    written, committed = asyncio.run(_with_database(config, work))
    if as_json:
        print_json({"out": str(out), "pairs": written, "committed": committed})
    else:
        print(f"{out}: {written} pairs of {committed} that the ledger has commitments to")


def erase(
    ref: AccountRef,
    reason: Annotated[str, typer.Option("--reason", help="Why; the ledger keeps it for good.")],
    by: By = "operator",
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Delete all twin pairs of an account for good: requests and both replies. The ledger keeps their commitments."""

    async def work(db: Database, guard: GuardConfig) -> tuple[str, int]:
        import time

        from spiritsafe.serve._account_store import AccountStore
        from spiritsafe.serve._twins import erase_twins

        account = (await AccountStore(db, guard).show(ref)).id
        async with _ledger(db, guard) as ledger:
            return account, await erase_twins(db, ledger, account, reason=reason, decided_by=by, now=time.time())

    account, pairs = asyncio.run(_with_database(config, work))
    if as_json:
        print_json({"account": account, "erased": pairs})
    else:
        print(f"{account}: {pairs} pairs erased; exports and backups may still hold them")


async def _write(db: Database, out: Path, account: str | None, model: str | None) -> int:
    import orjson

    from spiritsafe.errors import BadInput
    from spiritsafe.runs import atomic_file
    from spiritsafe.serve._twins import export_twins

    written = 0
    try:
        with atomic_file(out, 0o600) as file:
            async for pair in export_twins(db, account=account, model=model):
                file.write(orjson.dumps(pair) + b"\n")
                written += 1
    except OSError as error:
        raise BadInput(f"--out {out}: cannot be written ({error.strerror}); check the folder") from None
    return written


def _run(config: Path, work: Callable[[Canaries], Awaitable[T]]) -> T:
    async def run(db: Database, guard: GuardConfig) -> T:
        async with _canaries(db, guard) as canaries:
            return await work(canaries)

    return asyncio.run(_with_database(config, run))


@asynccontextmanager
async def _canaries(db: Database, guard: GuardConfig) -> AsyncIterator[Canaries]:
    from spiritsafe.serve._canaries import Canaries

    async with _ledger(db, guard) as ledger:
        yield await Canaries.open(db, guard, ledger)


@asynccontextmanager
async def _ledger(db: Database, guard: GuardConfig) -> AsyncIterator[Ledger]:
    from spiritsafe.ledger import Ledger

    ledger = await Ledger.open(db, commit_ms=1, retention_days=guard.ledger.retention_days)
    try:
        yield ledger
    finally:
        await ledger.aclose()


async def _with_database(config: Path, work: Callable[[Database, GuardConfig], Awaitable[T]]) -> T:
    from spiritsafe.config import load_config
    from spiritsafe.serve._config import GuardConfig
    from spiritsafe.state import Database

    guard = load_config(config, GuardConfig)
    async with await Database.open(guard.state.database) as db:
        return await work(db, guard)


def _facts(canary: Canary) -> dict[str, Any]:
    return {
        "id": canary.id,
        "state": canary.state,
        "created": canary.created,
        "prompt": canary.prompt,
        "answers": len(canary.variants),
        "canary_commit": canary.commit,
    }


def _lines(path: Path) -> list[str]:
    from spiritsafe.errors import BadInput

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--variants {path}: cannot be read as UTF-8 text ({error})") from None
    return [line for line in text.splitlines() if line.strip()]
