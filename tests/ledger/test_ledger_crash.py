"""Processes killed at any moment, databases that go away, disks that fill: nothing lost, nothing twice, one chain."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from crash_worker import take_over

import services
from ledger_kit import no_file_larger_than, row, stored
from spiritsafe.ledger import Ledger, read_ledger, verify_ledger
from spiritsafe.state import Database

HERE = Path(__file__).parent


@contextlib.contextmanager
def forking() -> Iterator[subprocess.Popen[str]]:
    """The process that forks workers on command."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "serve"), str(HERE.parent)])
    process = subprocess.Popen(
        [sys.executable, str(HERE / "crash_worker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def start(parent: subprocess.Popen[str], *arguments: object) -> tuple[int, list[str]]:
    """A worker's process id, and what else was said meanwhile."""
    assert parent.stdin is not None and parent.stdout is not None
    print("serve", *arguments, file=parent.stdin, flush=True)
    said = []
    while not (line := parent.stdout.readline()).startswith("pid"):
        said.append(line)
    return int(line.split()[1]), said


@pytest.mark.slow
def test_killed_at_random_every_released_reply_is_in_the_ledger_once(database_url: str, tmp_path: Path) -> None:
    """20 rounds of two processes at once; each new one takes over what the dead ones left, and may die doing so."""
    chance = random.Random(25)

    async def prepare() -> None:
        async with await Database.open(database_url):
            pass

    async def settle() -> tuple[dict[str, dict[str, object]], int]:
        async with await Database.open(database_url) as db:
            ledger = await Ledger.open(db, commit_ms=1)
            await take_over(tmp_path / "journal", ledger)
            await ledger.aclose()
            found = await verify_ledger(db)
            assert found.ok, found.problems
            rows = [line async for line in read_ledger(db)]
            return {str(line["request_id"]): line for line in rows}, len(rows)

    asyncio.run(prepare())
    with forking() as parent:
        assert parent.stdout is not None
        for round_ in range(20):
            said: list[str] = []
            pids = []
            for worker in ("one", "two"):
                pid, before = start(parent, tmp_path, database_url, worker, round_)
                pids.append(pid)
                said += before
            while sum(line.startswith("serving") for line in said) < 2:
                said.append(parent.stdout.readline())
            time.sleep(chance.random() * 0.3)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

    released: dict[str, int] = defaultdict(int)
    complete = set()
    for line in (tmp_path / "clients").read_text().splitlines():
        request_id, tokens, whole = line.split()
        released[request_id] = max(released[request_id], int(tokens))
        if whole == "1":
            complete.add(request_id)
    rows, count = asyncio.run(settle())
    assert count == len(rows)
    assert len(complete) > 100
    assert complete <= set(rows), "a reply left, and the ledger does not know it"
    for request_id in complete:
        assert (rows[request_id]["status"], rows[request_id]["tokens_out"]) == ("ok", released[request_id])
    for request_id, tokens in released.items():  # streams cut short: an upper bound
        assert rows[request_id]["tokens_out"] >= tokens
    assert any(line["status"] == "lost" for line in rows.values())
    assert not [path for path in (tmp_path / "journal").iterdir() if not path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("writers", [2, 4])
def test_processes_at_once_make_one_chain(database_url: str, tmp_path: Path, writers: int) -> None:
    code = """
import asyncio, sys
from ledger_kit import row
from spiritsafe.ledger import Ledger
from spiritsafe.state import Database

async def main(url, first):
    async with await Database.open(url) as db:
        ledger = await Ledger.open(db, commit_ms=2)
        print("ready", flush=True)
        sys.stdin.readline()
        futures = []
        for n in range(first, first + 200):
            futures.append(ledger.append(row(n)))
            if n % 20 == 0:
                await futures[-1]
        await ledger.aclose()
        assert [f.result() for f in futures] == sorted(f.result() for f in futures)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "serve")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, database_url, str(1000 * n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for n in range(writers)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.close()
        process.stdout.close()
    assert [process.wait(120) for process in processes] == [0] * writers

    async def check() -> None:
        async with await Database.open(database_url) as db:
            found = await verify_ledger(db)
            assert found.ok, found.problems
            ids = [line["request_id"] async for line in read_ledger(db)]
            assert sorted(ids) == sorted(f"req_{1000 * w + n:06d}" for w in range(writers) for n in range(200))
            turns = sum(one[4:7] != two[4:7] for one, two in itertools.pairwise(ids))
            assert turns >= writers, "they did not write at once"

    asyncio.run(check())


async def test_postgres_killed_under_load_loses_and_doubles_nothing() -> None:
    with services.running(services.postgres_service) as service:
        url = await asyncio.to_thread(services.new_postgres_database, service.port)
        async with await Database.open(url) as db:
            ledger = await Ledger.open(db, commit_ms=1)
            futures = []
            unhealthy = 0
            for n in range(600):
                futures.append(ledger.append(row(n)))
                if n in (100, 350):
                    await asyncio.to_thread(service.kill)
                if n in (200, 450):
                    while ledger.healthy:
                        await asyncio.sleep(0.01)
                    unhealthy += 1
                    (service.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
                    await asyncio.to_thread(service.start)
                await asyncio.sleep(0.0005)
            await ledger.flush()
            assert ledger.healthy and unhealthy == 2
            assert await asyncio.gather(*futures) == list(range(1, 601))
            await ledger.aclose()
            found = await verify_ledger(db)
            assert found.ok, found.problems
            assert [line["request_id"] async for line in read_ledger(db)] == [f"req_{n:06d}" for n in range(600)]


async def test_a_commit_whose_outcome_was_not_heard_is_not_repeated(postgres_url: str) -> None:
    """The connection goes after COMMIT was sent and before its answer came."""
    async with await Database.open(postgres_url) as db:
        ledger = await Ledger.open(db, commit_ms=1)
        real = db.transaction
        unheard = 0

        @contextlib.asynccontextmanager
        async def deaf(*, write: bool = True):  # type: ignore[no-untyped-def]
            nonlocal unheard
            async with real(write=write) as tx:
                yield tx
            if write and unheard < 3:
                unheard += 1
                raise ConnectionError("gone")

        db.transaction = deaf  # type: ignore[method-assign]
        futures = [ledger.append(row(n)) for n in range(3)]
        assert await asyncio.gather(*futures) == [1, 2, 3]
        assert unheard == 3
        await ledger.aclose()
        assert len(await stored(db)) == 3
        assert (await verify_ledger(db)).ok


@pytest.mark.parametrize("how", ["full", "broken"])
async def test_a_full_disk_stops_nothing_for_good(tmp_path: Path, how: str) -> None:
    """full: SQLite may not take more pages.  broken: writes to the file fail half way."""
    async with await Database.open(f"sqlite:///{tmp_path / 'guard.db'}") as db:
        ledger = await Ledger.open(db, commit_ms=1)
        await ledger.append(row(0))
        with contextlib.ExitStack() as stack:
            if how == "full":
                pages = (await db.fetch("PRAGMA page_count"))[0]["page_count"]
                await db.execute(f"PRAGMA max_page_count={pages + 10}")
            else:
                size = max(path.stat().st_size for path in tmp_path.iterdir())
                stack.enter_context(no_file_larger_than(size + 60_000))
            number, futures = 1, []
            while ledger.healthy:
                futures.append(ledger.append(row(number, skeleton="x" * 4000)))
                number += 1
                await asyncio.sleep(0.001)
            while ledger.backlog < 30:
                futures.append(ledger.append(row(number)))
                number += 1
            await asyncio.sleep(0.2)  # it tries again, in vain
            assert not ledger.healthy and ledger.backlog >= 30
        if how == "full":
            await db.execute("PRAGMA max_page_count=1000000")
        assert await asyncio.gather(*futures) == list(range(2, number + 1))
        assert ledger.healthy
        await ledger.aclose()
        found = await verify_ledger(db)
        assert found.ok, found.problems
        assert orjson.loads((await stored(db))[-1]["payload"])["request_id"] == f"req_{number - 1:06d}"


async def test_a_real_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        async with await Database.open(f"sqlite:///{disk / 'guard.db'}") as db:
            (disk / "ballast").write_bytes(b"x" * 300_000)
            ledger = await Ledger.open(db, commit_ms=1)
            number, futures = 0, []
            while ledger.healthy:
                futures.append(ledger.append(row(number, skeleton="x" * 4000)))
                number += 1
                await asyncio.sleep(0.001)
            (disk / "ballast").unlink()
            await ledger.flush()
            assert [future.result() for future in futures] == list(range(1, number + 1))
            assert ledger.healthy
            await ledger.aclose()
            assert (await verify_ledger(db)).ok
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
