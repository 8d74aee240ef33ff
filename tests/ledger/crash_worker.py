"""A process that serves made-up requests through journal and ledger until it is killed.

Run as a script it reads commands from stdin and forks a child for each, so that a child starts at once:
    serve FOLDER URL WORKER SEED     prints "pid N" and, when the child serves, "serving N"
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import Any

from ledger_kit import START, row
from spiritsafe.ledger import Journal, Ledger, LedgerRow, recover
from spiritsafe.state import Database


def lost(request_id: str, facts: dict[str, Any], released: int | None) -> LedgerRow:
    """What a gateway writes for a request whose process died: it pays for what may have left."""
    return row(facts["n"], ts=facts["ts"], request_id=request_id, status="lost", tokens_out=released or 0)


async def take_over(folder: Path, ledger: Ledger) -> None:
    orphans = recover(folder)
    for orphan in orphans:
        ledger.append(orphan.row or lost(orphan.request_id, orphan.facts, orphan.released_tokens))
    await ledger.flush()
    for orphan in orphans:
        orphan.done()


async def serve(folder: Path, url: str, worker: str, seed: int) -> None:
    chance = random.Random(seed)
    outside = os.open(folder / "clients", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    db = await Database.open(url, migrate=False)
    journal = Journal.open(folder / "journal", worker, large=20_000)
    ledger = await Ledger.open(db, commit_ms=chance.choice([1, 5, 50]))
    ledger.on_commit = journal.forget
    os.write(1, f"serving {os.getpid()}\n".encode())
    await take_over(folder / "journal", ledger)

    def client_has(request_id: str, tokens: int, complete: bool) -> None:
        os.write(outside, f"{request_id} {tokens} {int(complete)}\n".encode())

    async def request(number: int) -> None:
        request_id = f"{worker}-{seed}-{number}"
        journal.opened(request_id, {"n": number, "ts": START + number})
        await asyncio.sleep(chance.random() * 0.003)
        tokens = 0
        while chance.random() < 0.6:
            tokens += chance.randrange(1, 50)
            journal.may_release(request_id, tokens)
            client_has(request_id, tokens, False)
            await asyncio.sleep(0)
        entry = row(number, request_id=request_id, ts=START + number, tokens_out=tokens)
        journal.closed(entry)
        client_has(request_id, tokens, True)
        ledger.append(entry)

    async def caller(first: int) -> None:
        for number in range(first, 10**9, 8):
            await request(number)

    await asyncio.gather(*(caller(first) for first in range(8)))


def main() -> None:
    for command in sys.stdin:
        _, folder, url, worker, seed = command.split()
        pid = os.fork()
        if pid == 0:
            asyncio.run(serve(Path(folder), url, worker, int(seed)))
        print("pid", pid, flush=True)


if __name__ == "__main__":
    import spiritsafe.state._migrate
    import spiritsafe.state._postgres
    import spiritsafe.state._sqlite  # noqa: F401

    main()
