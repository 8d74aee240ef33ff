"""A guard's admin port on loopback, with real parts behind it, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

import accounts_kit as kit
from spiritsafe.ledger import Ledger, LedgerRow
from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._admin import AdminParts, admin_app
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._ladder import Ladder
from spiritsafe.state import Database

DAY = 86400.0


@dataclass
class Admin:
    """The port and what is behind it. key: an admin's."""

    url: str
    key: str
    parts: AdminParts
    accounts: Accounts
    ledger: Ledger
    db: Database
    clock: kit.Clock

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@contextlib.asynccontextmanager
async def admin(
    url: str, folder: Path, config: GuardConfig | None = None, status: Mapping[str, Any] | None = None
) -> AsyncIterator[Admin]:
    """Open everything on this database and serve it."""
    clock = kit.Clock()
    config = config or kit.config(state={"database": url, "secrets": str(folder / "guard.secrets")})
    secrets = kit.secrets(folder)
    async with await Database.open(url) as db, contextlib.AsyncExitStack() as stack:
        ledger = await Ledger.open(db, commit_ms=1, signer=secrets.signer, clock=clock)
        accounts = await Accounts.open(db, secrets, config, ledger, clock=clock)
        ladder = Ladder(db, config, accounts, ledger, clock=clock)
        stack.push_async_callback(ledger.aclose)
        parts = AdminParts(
            accounts=accounts, ledger=ledger, db=db, config=config, secrets=secrets, ladder=ladder,
            status=None if status is None else lambda: status, clock=clock,
        )  # fmt: skip
        await accounts.add("operator")
        key = (await accounts.issue_key("operator", scopes=["admin"], name="laptop")).text
        async with served(admin_app(parts)) as base:
            yield Admin(base, key, parts, accounts, ledger, db, clock)


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """An ASGI application on a free loopback port, in this event loop."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


async def spend(admin: Admin, account: str, key_id: str, days: int = 31) -> None:
    """Replies of the last days, more of them lately."""
    for ago in range(days):
        for number in range(1 + (days - ago) % 7):
            admin.ledger.append(
                LedgerRow(
                    ts=admin.clock.now - ago * DAY, request_id=f"{account}-{ago}-{number}", account=account, key_id=key_id,
                    model="small" if number % 2 else "large", tokens_in=900 + 13 * number, tokens_out=210, pico=31 * 10**9,
                )
            )  # fmt: skip
    await admin.ledger.flush()
