"""Workers that die: run as a program, this forks guards-in-small again and again and kills them with SIGKILL.

A worker journals, reserves, "serves", journals the row, releases (a line in a file), writes the ledger, settles; with
the real journal, ledger and limiter. What was released is what a customer has: it must stay below the cap.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from limits_kit import identity, tier_config
from spiritsafe.ledger import Journal, Ledger, LedgerRow, recover
from spiritsafe.serve._limits import Denied, RedisLimiter, Ticket, buckets_for, totals_source
from spiritsafe.serve._types import Demand
from spiritsafe.state import Database

CAP = 10**9  # a dollar


async def worker(options: dict[str, Any], name: str, accounts: list[str], seconds: float, ready: int) -> None:
    folder = Path(options["folder"])
    rng = random.Random(name)
    released = os.open(folder / "released", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    db = await Database.open(options["database"], migrate=False)
    journal = Journal.open(folder / "journal", name)
    ledger = await Ledger.open(db, commit_ms=20)
    ledger.on_commit = journal.forget
    orphans = await asyncio.to_thread(recover, folder / "journal")
    rows = [(orphan, orphan.row or lost(orphan.request_id, orphan.facts)) for orphan in orphans]
    await asyncio.gather(*(ledger.append(row) for _, row in rows))
    limiter = await RedisLimiter.open(
        options["redis"], worker=name, totals=totals_source(db), flush=ledger.flush, grace_s=0.5, beat_s=0.05,
        timeout_s=options.get("timeout_s", 1.0), wait_s=30, undone=lambda request_id: journal.forget([request_id]),
    )  # fmt: skip
    for orphan, row in rows:
        await limiter.recover(orphan.facts["ticket"], Demand(nano=row.pico // 1000))
        orphan.done()
    config = tier_config(usd_lifetime=1)
    plans = {account: buckets_for(config, identity(account), "m", time.time()) for account in accounts}
    end = time.monotonic() + seconds
    os.write(ready, b"!")

    async def client(number: int) -> None:
        count = 0
        while time.monotonic() < end:
            count += 1
            request_id, account = f"{name}.{number}.{count}", rng.choice(accounts)
            worst = rng.randrange(1, CAP // 60)
            buckets = plans[account].demand(Demand(nano=worst))
            likely = Ticket(request_id, buckets, limiter.generation)
            journal.opened(request_id, {"ticket": likely.to_facts(), "account": account})
            outcome = await limiter.reserve(buckets, request_id)
            if isinstance(outcome, Denied):
                if not outcome.undecided:
                    journal.forget([request_id])
                await asyncio.sleep(0.01)
                continue
            if outcome.ticket.generation != likely.generation:
                journal.opened(request_id, {"ticket": outcome.ticket.to_facts(), "account": account})
            await asyncio.sleep(rng.random() * 0.02)
            cost = rng.randrange(worst // 2, worst + 1)
            row = row_of(request_id, account, cost)
            journal.closed(row)
            os.write(released, f"{request_id} {account} {cost}\n".encode())
            ledger.append(row)
            await asyncio.sleep(rng.random() * 0.005)
            await limiter.settle(outcome.ticket, Demand(nano=cost))

    await asyncio.gather(*(client(number) for number in range(options["clients"])))
    await limiter.aclose()
    await ledger.aclose()
    journal.close()
    await db.aclose()


def row_of(request_id: str, account: str, nano: int, status: str = "ok") -> LedgerRow:
    return LedgerRow(time.time(), request_id, account, f"key_of_{account}", "m", pico=nano * 1000, status=status)


def lost(request_id: str, facts: dict[str, Any]) -> LedgerRow:
    """Nothing leaves before the row is journalled, so nothing has left."""
    return row_of(request_id, facts["account"], 0, "lost")


def fork(options: dict[str, Any], names: list[str], accounts: list[str], seconds: float) -> list[int]:
    """Start a worker for each name; their process ids, once all of them serve."""
    there, here = os.pipe()
    pids = []
    for name in names:
        pid = os.fork()
        if pid == 0:
            run_and_exit(options, name, accounts, seconds, here)
        pids.append(pid)
    os.close(here)
    for _ in names:
        assert os.read(there, 1), "a worker did not come up"
    os.close(there)
    return pids


def run_and_exit(options: dict[str, Any], name: str, accounts: list[str], seconds: float, ready: int) -> NoReturn:
    try:
        asyncio.run(worker(options, name, accounts, seconds, ready))
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    options = json.loads(sys.argv[1])
    rng = random.Random(options["seed"])
    started = time.monotonic()
    for round_ in range(options["kill_rounds"]):
        # a new account now and then, so that there is always one whose cap is near
        accounts = [f"acct_{round_}", f"acct_{round_ + 1}"]
        pids = fork(options, [f"r{round_}w{n}" for n in range(2)], accounts, 60.0)
        time.sleep(rng.random() * 0.3)
        os.kill(pids[0], signal.SIGKILL)
        time.sleep(rng.random() * 0.1)
        os.kill(pids[1], signal.SIGKILL)
        for pid in pids:
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status), f"a worker ended by itself in round {round_}"
    pids = fork(options, [f"last{n}" for n in range(2)], options["accounts"], options["seconds"])
    failed = [pid for pid in pids if os.waitpid(pid, 0)[1] != 0]
    assert not failed, "a worker failed"
    print(json.dumps({"seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
