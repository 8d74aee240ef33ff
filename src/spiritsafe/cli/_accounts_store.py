"""What the commands about accounts share: their options, and the guard's database opened for one command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from spiritsafe.serve._config import GuardConfig
    from spiritsafe.serve._key_store import KeyStore

__all__ = ["GUARD_FILE", "AccountRef", "By", "GuardFile", "Limit", "with_store"]

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
    from spiritsafe.config import load_config
    from spiritsafe.serve._config import GuardConfig

    guard = load_config(config, GuardConfig)
    url = guard.state.database
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        typer.echo(f"note: {url} does not exist yet and is made now", err=True)

    async def run() -> T:
        async with _store(guard) as store:
            return await work(store, guard)

    return asyncio.run(run())


@asynccontextmanager
async def _store(guard: GuardConfig) -> AsyncIterator[KeyStore]:
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
            yield store
        finally:
            await ledger.aclose()
