"""`spiritsafe ledger verify|export|checkpoint`: the guard's books, checked and taken out."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spiritsafe.cli._accounts_store import GUARD_FILE, GuardFile
from spiritsafe.cli._output import Json, Set, print_json
from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    from spiritsafe.ledger import Verification
    from spiritsafe.progress import Progress
    from spiritsafe.serve._config import GuardConfig

__all__ = ["register"]

_VERIFY = """
Examples:\n
  spiritsafe ledger verify\n
  spiritsafe ledger verify --public-key guard.pub --expect 81234:9f0c…\n
  spiritsafe ledger verify ledger.jsonl --public-key 3b6a27bc…\n
Exits 1 if anything is wrong.
"""
_EXPORT = """
Examples:\n
  spiritsafe ledger export --out ledger.jsonl --all\n
  spiritsafe ledger export --out november.parquet --since 2026-11-01 --until 2026-12-01 --no-personal
"""
_CHECKPOINT = """
Example: spiritsafe ledger checkpoint >> /mnt/elsewhere/checkpoints.txt
"""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MANY = {"reply": "replies", "event": "events", "checkpoint": "checkpoints"}
_MOMENT = "a day (UTC), an ISO time, Unix seconds, or an age such as 36h or 7d"


def register(app: typer.Typer) -> None:
    ledger = typer.Typer(help="The guard's ledger: verify, export, checkpoint.", no_args_is_help=True)
    app.add_typer(ledger, name="ledger")
    ledger.command(epilog=_VERIFY)(verify)
    ledger.command(epilog=_EXPORT)(export)
    ledger.command(epilog=_CHECKPOINT)(checkpoint)


def verify(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="An exported ledger; the guard's database unless given.")
    ] = None,
    config: GuardFile = GUARD_FILE,
    public_key: Annotated[
        list[str] | None,
        typer.Option(metavar="HEX|FILE", help="Ed25519 key that checkpoints must be signed with; may be repeated."),
    ] = None,
    expect: Annotated[
        list[str] | None, typer.Option(metavar="SEQ:HASH", help="A row you know from elsewhere; may be repeated.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Rows may be missing, as in a file of some days or without events.")
    ] = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Check every row's hash and place, personal fields, checkpoints and totals. The guard may go on serving."""
    from spiritsafe.cli._progress import watching

    keys = [_key(given) for given in public_key or []]
    known = [_known(given) for given in expect or []]
    guard = None if file is not None else _guard(config, overrides)
    with watching() as progress:
        found = asyncio.run(_verify(file, guard, keys, known, partial, progress))
    if as_json:
        print_json(found.to_dict())
    else:
        print(found.render())
    if not found.ok:
        raise typer.Exit(1)


def export(
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where to: .jsonl or .parquet; replaced if it exists.")
    ] = Path("ledger.jsonl"),
    since: Annotated[str | None, typer.Option(metavar="TIME", help=f"From then on: {_MOMENT}.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Only before that time.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Events and checkpoints too: only such a file can be verified as complete.")
    ] = False,
    personal: Annotated[
        bool, typer.Option("--personal/--no-personal", help="With or without end users, addresses, payment ids.")
    ] = True,
    config: GuardFile = GUARD_FILE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Write the ledger's rows to a file, which appears when it is complete."""
    from spiritsafe.cli._progress import watching

    first, last = _moment("--since", since), _moment("--until", until)
    guard = _guard(config, overrides)

    async def run(progress: Progress) -> dict[str, int]:
        from spiritsafe.ledger import export_ledger
        from spiritsafe.state import Database

        async with await Database.open(guard.state.database, migrate=False) as db:
            return await export_ledger(
                db, out, since=first, until=last, everything=everything, personal=personal, progress=progress
            )

    with watching() as progress:
        counts = asyncio.run(run(progress))
    if as_json:
        print_json({"out": str(out), "counts": counts})
    else:
        print(f"{out}: " + ", ".join(f"{number:,} {_MANY[kind]}" for kind, number in counts.items()))


def checkpoint(config: GuardFile = GUARD_FILE, overrides: Set = None, as_json: Json = False) -> None:
    """Sign the chain as it stands and print that. Keep the line where the guard's operator cannot reach it."""
    guard = _guard(config, overrides)
    if not guard.state.secrets.exists():
        raise BadInput(f"{guard.state.secrets}: the guard's secrets are not there; start `spiritsafe serve` once")

    async def run() -> None:
        import time

        from spiritsafe.ledger import write_checkpoint
        from spiritsafe.serve._secrets import GuardSecrets
        from spiritsafe.state import Database

        signer = GuardSecrets.load(guard.state.secrets).signer
        async with await Database.open(guard.state.database, migrate=False) as db:
            signed = await write_checkpoint(db, signer, time.time())
        if signed is None:
            raise BadInput(f"{config}: the ledger is empty, there is nothing to sign yet")
        if as_json:
            print_json(signed.to_dict())
        else:
            print(f"--expect {signed.seq}:{signed.hash} --public-key {signed.public_key}")

    asyncio.run(run())


async def _verify(
    file: Path | None,
    guard: GuardConfig | None,
    keys: list[str],
    expect: list[tuple[int, str]],
    partial: bool,
    progress: Progress,
) -> Verification:
    from spiritsafe.ledger import verify_ledger
    from spiritsafe.state import Database

    if guard is None:
        assert file is not None
        return await verify_ledger(file, public_keys=keys, expect=expect, partial=partial, progress=progress)
    async with await Database.open(guard.state.database, migrate=False) as db:
        return await verify_ledger(db, public_keys=keys, expect=expect, partial=partial, progress=progress)


def _guard(config: Path, overrides: list[str] | None) -> GuardConfig:
    from spiritsafe.config import load_config
    from spiritsafe.serve._config import GuardConfig

    guard = load_config(config, GuardConfig, overrides or [])
    url = guard.state.database
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise BadInput(f"{config}: there is no database {url} yet; start `spiritsafe serve` once, in its folder")
    return guard


def _key(given: str) -> str:
    """A public key in hex, given as such or as a file that holds it, in hex or PEM."""
    text = given
    path = Path(given)
    if len(given) != 64 and path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    if text.startswith("-----BEGIN PUBLIC KEY"):
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(text.encode())
        except ValueError:
            key = None
        if isinstance(key, Ed25519PublicKey):
            return key.public_bytes_raw().hex()
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise BadInput(f"--public-key {given}: give 64 hex digits, or a file with them or with a PEM Ed25519 key")
    return text.lower()


def _known(given: str) -> tuple[int, str]:
    found = re.fullmatch(r"(\d+):([0-9a-f]{64})", given)
    if found is None:
        raise BadInput(f"--expect {given}: write SEQ:HASH, as `spiritsafe ledger checkpoint` prints it")
    return int(found[1]), found[2]


def _moment(option: str, given: str | None) -> float | None:
    """Unix seconds."""
    from datetime import UTC, datetime

    if given is None:
        return None
    if found := re.fullmatch(r"(\d+)([smhd])", given):
        return datetime.now(UTC).timestamp() - int(found[1]) * _UNITS[found[2]]
    if re.fullmatch(r"-?\d+(\.\d+)?", given):
        return float(given)
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise BadInput(f"{option} {given}: not a time; write {_MOMENT}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
