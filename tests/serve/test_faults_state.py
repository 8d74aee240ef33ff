"""What the guard keeps its state in goes away under load, and comes back: Redis, Postgres, the disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import services
from faults_kit import Guarded, Mock, guarding, mocking
from faults_load_kit import CENT, RESERVED_PICO, Load, Tally, check_books, last_cents, spend

TIERS = {"default": {"usd_lifetime": 3, "concurrency": 100}}
CAP = 3 * 10**12
FULL = CAP - RESERVED_PICO + 1


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with mocking(tmp_path_factory.mktemp("mock")) as mock:
        yield mock


def upstreams(mock: Mock) -> list[dict[str, Any]]:
    mode = "delay_ms=100,chunks=5,interval_ms=20"
    return [{"name": "mock", "base_url": f"http://127.0.0.1:{mock.port}/{mode}/v1", "models": ["m"], "price": CENT}]


@pytest.fixture
def redis() -> Iterator[services.Service]:
    with services.running(services.redis_service) as service:
        yield service


@pytest.fixture
def postgres() -> Iterator[services.Service]:
    with services.running(services.postgres_service) as service:
        yield service


async def while_down(
    load: Load, down: Callable[[], None], up: Callable[[], None], seconds: float
) -> tuple[Tally, Tally]:
    """(everything, what was seen up to the return) of a load during which something is away."""
    task = asyncio.create_task(load.run())
    await asyncio.sleep(0.3)
    await asyncio.to_thread(down)
    await asyncio.sleep(seconds)
    meanwhile = Tally(statuses=load.tally.statuses.copy())
    await asyncio.to_thread(up)
    return await task, meanwhile


def test_redis_killed_under_load(tmp_path: Path, mock: Mock, redis: services.Service) -> None:
    """Closed limits refuse while Redis is away; what it forgot is known again before the first request after."""
    state = {"limits": f"redis://127.0.0.1:{redis.port}/0"}
    with guarding(tmp_path, mock, upstreams=upstreams(mock), tiers=TIERS, state=state) as guard:
        key = guard.new_key("acme")
        load = Load([guard.port], key)
        tally, meanwhile = asyncio.run(while_down(load, redis.kill, redis.start, 1.0))
        assert meanwhile.statuses[503] > 0 and set(tally.statuses) <= {200, 402, 503}
        last_cents([guard.port], key, tally)
        check_books(guard, {"acme": tally}, cap=CAP, least=FULL)
        guard.wait_ready()


def test_redis_killed_under_load_with_open_limits(tmp_path: Path, mock: Mock, redis: services.Service) -> None:
    """Open limits let requests pass, metered all the same; the cap counts what they took once Redis is back."""
    state = {"limits": f"redis://127.0.0.1:{redis.port}/0"}
    limits = {"when_state_is_down": "open"}
    with guarding(tmp_path, mock, upstreams=upstreams(mock), tiers=TIERS, state=state, limits=limits) as guard:
        key = guard.new_key("acme")
        load = Load([guard.port], key)
        tally, meanwhile = asyncio.run(while_down(load, redis.kill, redis.start, 0.6))
        assert 503 not in meanwhile.statuses and set(tally.statuses) <= {200, 402}
        check_books(guard, {"acme": tally}, cap=10 * CAP)
        assert guard.post(key, max_tokens=80).status == 402


def test_postgres_killed_under_load(tmp_path: Path, mock: Mock, postgres: services.Service) -> None:
    """Replies given meanwhile wait in the journal; nothing is lost and nothing charged twice."""
    database = services.new_postgres_database(postgres.port)
    with guarding(tmp_path, mock, upstreams=upstreams(mock), tiers=TIERS, state={"database": database}) as guard:
        key = guard.new_key("acme")
        load = Load([guard.port], key)
        tally, _ = asyncio.run(while_down(load, postgres.kill, postgres.start, 1.5))
        assert set(tally.statuses) <= {200, 402, 503}
        assert tally.lost == tally.broken == 0
        guard.wait_ready()
        last_cents([guard.port], key, tally)
        check_books(guard, {"acme": tally}, cap=CAP, least=FULL)


def test_the_guard_killed_while_postgres_is_away(tmp_path: Path, mock: Mock, postgres: services.Service) -> None:
    """What only the journal knew is in the ledger after both are back."""
    database = services.new_postgres_database(postgres.port)
    with guarding(tmp_path, mock, upstreams=upstreams(mock), tiers=TIERS, state={"database": database}) as guard:
        key = guard.new_key("acme")

        async def fall() -> Tally:
            load = Load([guard.port], key)
            task = asyncio.create_task(load.run())
            await asyncio.sleep(0.3)
            await asyncio.to_thread(postgres.kill)
            await asyncio.sleep(0.4)
            load.stop()
            guard.stop(9)
            return await task

        tally = asyncio.run(fall())
        assert len(tally.replies) > 0
        postgres.start()
        guard.start()
        tally.add(spend([guard.port], key))
        last_cents([guard.port], key, tally)
        check_books(guard, {"acme": tally}, cap=CAP, least=FULL)


@dataclass
class Disk:
    """A disk that can be filled and freed. `limit` is for the guard's process where there is no disk of its own."""

    folder: Path
    limit: Callable[[], None] | None = None

    def fill(self, guard: Guarded) -> None:
        if self.limit is None:
            with contextlib.suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        else:
            assert guard.process is not None
            resource.prlimit(guard.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))

    def free(self, guard: Guarded) -> None:
        if self.limit is None:
            (self.folder / "filler").unlink()
        else:
            assert guard.process is not None
            resource.prlimit(guard.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A tmpfs of 8 MB, or a limit on the size of files where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield Disk(folder, limit=lambda: None)
        return
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(tmp_path: Path, mock: Mock, disk: Disk) -> None:
    """Where nothing can be written down nothing leaves; with room again, the guard goes on by itself."""
    with guarding(
        tmp_path,
        mock,
        upstreams=upstreams(mock),
        tiers=TIERS,
        state={"database": f"sqlite:///{disk.folder / 'guard.db'}", "journal": str(disk.folder / "journal")},
    ) as guard:
        key = guard.new_key("acme")

        async def fill() -> tuple[Tally, int, int]:
            load = Load([guard.port], key, clients=32, patience=90)
            task = asyncio.create_task(load.run())
            await asyncio.sleep(0.5)
            await asyncio.to_thread(disk.fill, guard)
            await asyncio.sleep(1.5)
            refused, before = load.tally.statuses[503], len(mock.asked())
            await asyncio.sleep(0.5)
            still = load.tally.statuses[503] - refused
            after = len(mock.asked()) - before
            await asyncio.to_thread(disk.free, guard)
            assert still > 0, load.tally
            return await task, still, after

        tally, refused, asked = asyncio.run(fill())
        assert set(tally.statuses) <= {200, 402, 503}
        assert refused > 0 and asked == 0  # nothing went upstream that could not be written down
        guard.wait_ready()
        last_cents([guard.port], key, tally)
        check_books(guard, {"acme": tally}, cap=CAP, least=FULL)
