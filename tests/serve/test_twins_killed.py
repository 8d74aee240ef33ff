"""A guard killed at any moment leaves no reply released whose pair and coin the ledger does not hold."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

import accounts_kit as kit
from spiritsafe.ledger import Journal, Ledger, LedgerRow, recover, verify_ledger
from spiritsafe.serve._twins import Twins, export_twins
from spiritsafe.state import Database

ROUNDS = 4


async def _serve(url: str, folder: Path) -> None:
    """What the gateway does with twinned requests, in its order, several at a time, until it is killed."""
    db = await Database.open(url)
    ledger = await Ledger.open(db, commit_ms=5)
    journal = Journal.open(folder, "w")
    ledger.on_commit = journal.forget
    twins = Twins(db, kit.config())

    async def one(request_id: str) -> None:
        journal.opened(request_id, {})
        pair = [{"choices": [{"text": f"{side} of {request_id}"}]} for side in ("left", "right")]
        choice = await twins.choose(
            request_id=request_id, account="a", model="small", request={}, first=pair[0], second=pair[1]
        )
        assert choice is not None
        row = LedgerRow(time.time(), request_id, "a", "k", "small", twin_commit=choice.twin_commit)
        journal.closed(row)
        print(request_id, choice.released, flush=True)
        ledger.append(row)

    for i in range(1_000_000):
        await asyncio.gather(*(one(f"{random.random()}-{i}-{j}") for j in range(4)))


async def _recovered(url: str, folder: Path) -> dict[str, int]:
    """Take the dead one's journal over; which reply of which pair the ledger holds evidence for."""
    async with await Database.open(url) as db:
        ledger = await Ledger.open(db, commit_ms=1)
        orphans = recover(folder)
        await asyncio.gather(*(ledger.append(orphan.row) for orphan in orphans if orphan.row is not None))
        for orphan in orphans:
            orphan.done()
        await ledger.aclose()
        assert (await verify_ledger(db)).ok
        return {pair["request_id"]: pair["coin"] async for pair in export_twins(db)}


@pytest.mark.slow
async def test_killed_between_keeping_and_releasing(database_url: str, tmp_path: Path) -> None:
    released: dict[str, int] = {}
    for number in range(ROUNDS):
        with subprocess.Popen(
            [sys.executable, __file__, database_url, str(tmp_path / "journal")],
            stdout=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)},
        ) as child:  # fmt: skip
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(1 + number * random.randrange(1, 20))]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.read().splitlines()
        for line in lines:
            request_id, side = line.split()
            released[request_id.decode()] = int(side)
        proven = await _recovered(database_url, tmp_path / "journal")
        assert len(released) >= number + 1
        assert {request_id: proven.get(request_id) for request_id in released} == released
    async with await Database.open(database_url) as db:
        kept = {row["request_id"]: orjson.loads(row["first"]) for row in await db.fetch("SELECT * FROM twins")}
    assert all(kept[request_id]["choices"][0]["text"] == f"left of {request_id}" for request_id in released)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2])))
