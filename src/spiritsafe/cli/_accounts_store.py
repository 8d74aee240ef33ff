"""What the commands about accounts share: their options, and the guard's database opened for one command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from spiritsafe.ledger import Ledger
    from spiritsafe.serve._config import GuardConfig
    from spiritsafe.serve._key_store import KeyStore
    from spiritsafe.serve._ladder import Ladder
    from spiritsafe.state import Database

__all__ = ["GUARD_FILE", "AccountRef", "By", "GuardFile", "Limit", "with_ladder", "with_store"]

T = TypeVar("T")
GUARD_FILE = Path("guard.yaml")
GuardFile = Annotated[Path, typer.Option("--config", metavar="GUARD.yaml", help="The guard's config.")]
AccountRef = Annotated[str, typer.Argument(metavar="ID", help="The account's id or its name.")]
By = Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides, as the ledger keeps it.")]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="RULE=VALUE",
        help="A limit of its own, e.g. usd_per_day=5; none: no limit; tier: as the tier says.",
    ),
]


def with_store(config: Path, work: Callable[[KeyStore, GuardConfig], Awaitable[T]]) -> T:
    """Open the guard's database, do one thing, and close it once the ledger has what was done."""
    guard = _read(config)

    async def run() -> T:
        async with _opened(guard) as (_, _, store):
            return await work(store, guard)

    return asyncio.run(run())


def with_ladder(config: Path, work: Callable[[Ladder, KeyStore, GuardConfig], Awaitable[T]]) -> T:
    """The same with the ladder."""
    from spiritsafe.serve._ladder import Ladder

    guard = _read(config)

    async def run() -> T:
        async with _opened(guard) as (db, ledger, store):
            return await work(Ladder(db, guard, store, ledger), store, guard)

    return asyncio.run(run())


def _read(config: Path) -> GuardConfig:
    from spiritsafe.config import load_config
    from spiritsafe.serve._config import GuardConfig

    guard = load_config(config, GuardConfig)
    url = guard.state.database
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        typer.echo(f"note: {url} does not exist yet and is made now", err=True)
    return guard


@asynccontextmanager
async def _opened(guard: GuardConfig) -> AsyncIterator[tuple[Database, Ledger, KeyStore]]:
    from spiritsafe.ledger import Ledger
    from spiritsafe.serve._key_store import KeyStore
    from spiritsafe.serve._secrets import GuardSecrets
    from spiritsafe.state import Database

    secrets = GuardSecrets.load(guard.state.secrets)
    async with await Database.open(guard.state.database) as db:
        ledger = await Ledger.open(db, commit_ms=1, retention_days=guard.ledger.retention_days)
        try:
            store = KeyStore(db, secrets, guard, ledger)
            await store.check_secrets()
            yield db, ledger, store
        finally:
            await ledger.aclose()
