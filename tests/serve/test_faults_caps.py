"""Sixty-four clients against one dollar: what is spent is a dollar or less, to the pico-dollar, whoever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import services
from faults_kit import Guarded, Mock, guard_settings, guarding, mocking
from faults_load_kit import CAP_PICO, CENT, REPLY_PICO, RESERVED_PICO, Load, Tally, check_books, last_cents, spend

TIERS = {"default": {"usd_lifetime": 1, "concurrency": 100}}
FULL = CAP_PICO - RESERVED_PICO + 1  # a dollar but for what no request fits into
ROUNDS = 50


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with mocking(tmp_path_factory.mktemp("mock")) as mock:
        yield mock


def upstreams(mock: Mock, mode: str = "delay_ms=15,chunks=5,interval_ms=3") -> list[dict[str, Any]]:
    return [{"name": "mock", "base_url": f"http://127.0.0.1:{mock.port}/{mode}/v1", "models": ["m"], "price": CENT}]


def test_one_process_spends_a_dollar_exactly(tmp_path: Path, mock: Mock) -> None:
    with guarding(tmp_path, mock, upstreams=upstreams(mock), tiers=TIERS) as guard:
        key = guard.new_key("acme")
        tally = spend([guard.port], key)
        assert tally.statuses[402] == 64 and tally.lost == tally.broken == 0
        last_cents([guard.port], key, tally)
        check_books(guard, {"acme": tally}, least=FULL)
        assert len(tally.replies) * REPLY_PICO == sum(row["pico"] for row in guard.rows())  # nothing else was charged
        guard.assert_no_secrets(key)
        guard.stop()
        guard.start()  # and the dollar stays spent
        assert guard.post(key, max_tokens=80).status == 402


def test_a_single_process_killed_and_started_again(tmp_path: Path, mock: Mock) -> None:
    chance = random.Random(int(time.time()))
    with guarding(
        tmp_path, mock, upstreams=upstreams(mock, "delay_ms=150,chunks=5,interval_ms=30"), tiers=TIERS
    ) as guard:
        key = guard.new_key("acme")

        async def under_load() -> Tally:
            load = Load([guard.port], key, patience=120)
            task = asyncio.create_task(load.run())
            for _ in range(2):
                await asyncio.sleep(chance.uniform(0.05, 0.3))
                guard.stop(signal.SIGKILL)
                await asyncio.to_thread(guard.start)
            return await task

        tally = asyncio.run(under_load())
        assert tally.lost > 0
        last_cents([guard.port], key, tally)
        check_books(guard, {"acme": tally}, least=FULL)
        assert not any((tmp_path / "journal").glob("*.orphan"))


@contextlib.contextmanager
def replicas(
    folder: Path, mock: Mock, redis_port: int, database: str, workers: int, **more: Any
) -> Iterator[list[Guarded]]:
    """Two guards that share limits, accounts and ledger, each with a journal of its own."""
    guards = []
    for name in ("one", "two"):
        state = {
            "database": database,
            "limits": f"redis://127.0.0.1:{redis_port}/0",
            "journal": str(folder / f"journal-{name}"),
            "secrets": str(folder / "guard.secrets"),
        }
        settings = guard_settings(
            folder, mock, {}, state=state, **{"upstreams": upstreams(mock), "tiers": TIERS, **more}
        )
        guards.append(Guarded(folder, settings, workers, name=name))
    try:
        for guard in guards:
            guard.start(ready=False)
        for guard in guards:
            guard.wait_ready()
        yield guards
    finally:
        for guard in guards:
            if guard.process is not None:
                guard.stop(signal.SIGKILL)


@pytest.fixture
def redis() -> Iterator[services.Service]:
    """A Redis of the test's own."""
    with services.running(services.redis_service) as service:
        yield service


def test_two_replicas_spend_a_dollar_exactly(
    tmp_path: Path, mock: Mock, redis: services.Service, database_url: str
) -> None:
    with replicas(tmp_path, mock, redis.port, database_url, workers=1) as guards:
        key = guards[0].new_keys("acme")["acme"]
        guards[1].wait_for_keys(key)
        ports = [guard.port for guard in guards]
        tally = spend(ports, key)
        assert tally.statuses[402] == 64 and tally.lost == tally.broken == 0
        last_cents(ports, key, tally)
        check_books(guards[0], {"acme": tally}, least=FULL)
        assert len(tally.replies) * REPLY_PICO == sum(row["pico"] for row in guards[0].rows())


@pytest.mark.slow
def test_workers_killed_at_random(tmp_path: Path, mock: Mock, redis: services.Service, postgres_url: str) -> None:
    """Fifty accounts, a dollar each, two replicas of two workers; in each round a worker is killed while all spend."""
    seed = int(time.time())
    chance = random.Random(seed)
    print(f"seed {seed}")
    names = [f"round-{number}" for number in range(ROUNDS)]
    with replicas(tmp_path, mock, redis.port, postgres_url, workers=2) as guards:
        keys = guards[0].new_keys(*names)
        guards[1].wait_for_keys(*keys.values())
        ports = [guard.port for guard in guards]
        spent: dict[str, Tally] = {}
        killed = 0

        async def one_round(name: str) -> int:
            load = Load(ports, keys[name], patience=60)
            task = asyncio.create_task(load.run())
            await asyncio.sleep(chance.uniform(0.02, 0.2))
            victims = [pid for guard in guards for pid in guard.worker_pids()]
            done = 0
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(victims), signal.SIGKILL)
                    done = 1
            spent[name] = await task
            return done

        for name in names:
            killed += asyncio.run(one_round(name))
        assert killed >= ROUNDS * 0.9
        for guard in guards:
            guard.wait_ready()
        time.sleep(2)  # the last one killed is started again, and gives back what it held
        for guard in guards:
            guard.wait_ready()
        for name in names:
            last_cents(ports, keys[name], spent[name])
        assert sum(tally.lost + tally.broken for tally in spent.values()) > ROUNDS
        check_books(guards[0], spent, least=FULL)
        for guard in guards:
            guard.assert_no_secrets(*keys.values())
