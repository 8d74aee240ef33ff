"""A real guard over a real (mock) upstream, in this process, on free loopback ports."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from spiritsafe.config import parse_config
from spiritsafe.serve._app import GuardApp
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._guard import Guard
from spiritsafe.serve._server import _server, bind, url_of

PRICE = {"input_per_mtok": 1.0, "output_per_mtok": 2.0}


def guard_config(folder: Path, upstream: str, **changes: Any) -> GuardConfig:
    """A guard of one upstream that serves the model "m", with everything it keeps in `folder`."""
    data: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "state": {
            "database": f"sqlite:///{folder / 'guard.db'}",
            "journal": str(folder / "journal"),
            "secrets": str(folder / "guard.secrets"),
        },
        "upstreams": [{"name": "mock", "base_url": upstream, "models": ["m"], "price": PRICE}],
        "logs": {"requests": "none", "level": "error"},
        "ledger": {"commit_ms": 5},
    }
    for name, value in changes.items():
        data[name] = data[name] | value if isinstance(data.get(name), dict) and isinstance(value, dict) else value
    return parse_config(data, GuardConfig, where="test")


@dataclass
class Running:
    """A guard that serves. `do` runs a coroutine function on its event loop, with the guard."""

    guard: Guard
    loop: asyncio.AbstractEventLoop
    public: str
    admin: str
    clients: list[openai.OpenAI] = field(default_factory=list)

    def do(self, work: Any, *args: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work(self.guard, *args), self.loop).result(30)

    def new_key(self, name: str = "acme", **account: Any) -> str:
        """An account and its key. Also takes `scopes`."""
        scopes = account.pop("scopes", ("inference",))

        async def make(guard: Guard) -> str:
            added = await guard.accounts.add(name, **account)
            return (await guard.accounts.issue_key(added.id, scopes=scopes)).text

        return str(self.do(make))

    def client(self, key: str, **options: Any) -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.public}/v1", api_key=key, max_retries=0, **options)
        self.clients.append(client)
        return client

    def rows(self) -> list[dict[str, Any]]:
        """The ledger's rows once everything is written."""

        async def read(guard: Guard) -> list[dict[str, Any]]:
            from spiritsafe.ledger import read_ledger

            await guard.ledger.flush()
            return [row async for row in read_ledger(guard.db)]

        found: list[dict[str, Any]] = self.do(read)
        return found

    def exposed(self) -> list[str]:
        """The lines of /metrics."""

        async def read(guard: Guard) -> list[str]:
            return guard.metrics.render()[0].decode().splitlines()

        lines: list[str] = self.do(read)
        return lines


@contextlib.contextmanager
def guarding(config: GuardConfig) -> Iterator[Running]:
    """Serve until the block ends."""
    ready = threading.Event()
    running: list[Running] = []
    failed: list[BaseException] = []

    async def main() -> None:
        listeners = [bind(config.listen), bind(config.admin)]
        async with await Guard.open(config) as guard:
            servers = [_server(app, config.drain) for app in (GuardApp(guard), guard.admin_app())]
            tasks = [
                asyncio.create_task(server.serve(sockets=[listener]))
                for server, listener in zip(servers, listeners, strict=True)
            ]
            while not all(server.started for server in servers):
                await asyncio.sleep(0.005)
            running.append(Running(guard, asyncio.get_running_loop(), *map(url_of, listeners)))
            stops.append(lambda: [setattr(server, "should_exit", True) for server in servers])
            ready.set()
            await asyncio.gather(*tasks)

    stops: list[Any] = []

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    if failed:
        raise failed[0]
    try:
        yield running[0]
    finally:
        for client in running[0].clients:
            client.close()
        running[0].loop.call_soon_threadsafe(stops[0])
        thread.join(40)
        assert not thread.is_alive(), "the guard did not stop"
    if failed:
        raise failed[0]
