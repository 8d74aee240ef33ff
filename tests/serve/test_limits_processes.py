"""Several processes, one Redis, one dollar: with workers killed at random, and with Redis killed under them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import services
from limits_crash_kit import CAP
from spiritsafe.ledger import verify_ledger
from spiritsafe.serve._limits import RedisLimiter, totals_source
from spiritsafe.state import Database

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture
def server() -> Iterator[services.Service]:
    with services.running(services.redis_service) as service:
        yield service


class Run:
    """A run of the crash kit in a folder."""

    def __init__(self, folder: Path, redis_port: int, database: str, **options: Any) -> None:
        self.folder, self.database, self.redis = folder, database, f"redis://127.0.0.1:{redis_port}/0"
        known = {"folder": str(folder), "redis": self.redis, "database": database, "seed": 1, "clients": 16}
        asyncio.run(self._migrate())
        script = Path(__file__).with_name("limits_crash_kit.py")
        paths = f"{script.parent}:{script.parent.parent}"
        self.process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(known | options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin"},
        )

    async def _migrate(self) -> None:
        await (await Database.open(self.database)).aclose()

    def finish(self) -> None:
        out, err = self.process.communicate(timeout=280)
        assert self.process.returncode == 0, err
        assert json.loads(out)["seconds"] > 0

    def released(self) -> dict[str, dict[str, int]]:
        """Nano-dollars by account and request."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for text in (self.folder / "released").read_text().splitlines():
            request_id, account, nano = text.split()
            assert request_id not in found[account]
            found[account][request_id] = int(nano)
        return found

    async def rows(self) -> dict[str, int]:
        """Nano-dollars by request, from the ledger."""
        async with await Database.open(self.database) as db:
            assert (await verify_ledger(db)).ok
            rows = await db.fetch("SELECT request_id, payload FROM ledger WHERE kind = 'reply'")
            return {row["request_id"]: json.loads(row["payload"])["pico"] // 1000 for row in rows}

    async def counted(self, account: str) -> tuple[int, int]:
        """What Redis has as settled and as reserved of an account's lifetime allowance."""
        async with await Database.open(self.database) as db:
            limiter = await RedisLimiter.open(
                self.redis, worker="reader", totals=totals_source(db), flush=nothing, grace_s=0.1
            )
            key = limiter._store.bucket_prefix(limiter._store.latest) + f"usd_lifetime:account:{account}"
            raw = await limiter._store.ask("GET", key)
            await limiter.aclose()
            _, settled, held = raw.decode().split()
            return int(settled), int(held)


async def nothing() -> None:
    """There is nothing to flush."""


def test_two_processes_cannot_overshoot_a_dollar(tmp_path: Path, server: services.Service) -> None:
    run = Run(tmp_path, server.port, f"sqlite:///{tmp_path / 'guard.db'}", kill_rounds=0, seconds=2.5, accounts=["a"], clients=32)  # fmt: skip
    run.finish()
    released = run.released()["a"]
    assert CAP * 0.9 < sum(released.values()) <= CAP
    assert asyncio.run(run.rows()) == released
    assert asyncio.run(run.counted("a")) == (sum(released.values()), 0)


def test_workers_killed_at_random(tmp_path: Path, server: services.Service) -> None:
    """Twenty rounds of limiter, journal and ledger alone; whole guards have fifty, in test_faults_caps."""
    rounds = 20
    accounts = [f"acct_{n}" for n in range(rounds + 1)]
    run = Run(
        tmp_path, server.port, f"sqlite:///{tmp_path / 'guard.db'}", kill_rounds=rounds, seconds=1.5, accounts=accounts
    )
    run.finish()
    rows = asyncio.run(run.rows())
    served = {request_id.partition("w")[0] for some in run.released().values() for request_id in some}
    assert len(served) > 0.8 * rounds  # most rounds got to serve before they were killed
    assert sum(nano == 0 for nano in rows.values()) > rounds  # and left requests behind that were recovered
    full = 0
    for account, released in run.released().items():
        spent = sum(released.values())
        assert spent <= CAP
        full += spent > CAP * 0.8
        # every reply that left is in the ledger, at its price; one that was journalled and did not leave may be, too
        assert released.items() <= {request_id: rows[request_id] for request_id in released}.items()
        settled, held = asyncio.run(run.counted(account))
        assert spent <= settled <= CAP
        assert held == 0  # not even by a worker that was killed between reserving and hearing of it
    assert full >= 0.1 * rounds


def test_redis_killed_under_two_processes_forgets_nothing(tmp_path: Path, server: services.Service) -> None:
    run = Run(
        tmp_path, server.port, f"sqlite:///{tmp_path / 'guard.db'}", kill_rounds=0, seconds=12.0, accounts=["a", "b"]
    )
    stop = threading.Event()
    restarts = 0
    time.sleep(3)
    while run.process.poll() is None and restarts < 4:
        server.kill()
        stop.wait(0.05)
        server.start()
        restarts += 1
        stop.wait(1.7)
    run.finish()
    assert restarts == 4
    rows = asyncio.run(run.rows())
    released = run.released()
    assert rows == {request_id: nano for some in released.values() for request_id, nano in some.items()}
    for account, some in released.items():
        spent = sum(some.values())
        assert CAP * 0.5 < spent <= CAP
        assert asyncio.run(run.counted(account)) == (spent, 0)
