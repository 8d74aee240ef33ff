"""A soak: many requests at a fixed rate through the real guard, and then its books.

ledger rows = replies sent; the chain verifies; totals = the sum of the rows; the limits hold the same money to the last
reply (each account's budget is what the run costs and five replies more: afterwards exactly five more are given);
nothing left in the journal; memory flat: the slope of resident memory over the second half of the run, per 100,000
requests. Four accounts, one of which streams.

    python benchmarks/guard_soak.py [--requests 100000] [--rate 400]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import guard_load as load
import guard_ours as ours
import guard_peers as peers

ACCOUNTS, SPARE, TOKENS = 4, 5, 40
EVERY_S = 1.0
SLOPE_MB = 10.0  # growth that is still called flat, per 100,000 requests
JUDGED = 50_000  # in shorter runs caches are still filling


class Watch(threading.Thread):
    """Samples (seconds, resident megabytes) until stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.samples, self.ended = pid, [], threading.Event()

    def run(self) -> None:
        begun = time.monotonic()
        while not self.ended.wait(EVERY_S):
            self.samples.append((time.monotonic() - begun, load.rss_mb(self.pid)))

    def slope(self) -> float:
        """Megabytes a second over the second half, by least squares."""
        half = self.samples[len(self.samples) // 2 :]
        if len(half) < 3:
            return 0.0
        x, y = [s for s, _ in half], [m for _, m in half]
        mx, my = sum(x) / len(x), sum(y) / len(y)
        return sum((a - mx) * (b - my) for a, b in half) / sum((a - mx) ** 2 for a in x)


def books(config: Path) -> dict[str, Any]:
    """What ledger, totals and chain say after the guard has stopped."""
    from spiritsafe.config import load_config
    from spiritsafe.ledger import read_ledger, recover, verify_ledger
    from spiritsafe.serve._config import GuardConfig
    from spiritsafe.state import Database

    guard = load_config(config, GuardConfig)

    async def read() -> dict[str, Any]:
        async with await Database.open(guard.state.database) as db:
            rows, ids, pico = 0, set(), 0
            async for row in read_ledger(db):
                rows, pico = rows + (row["status"] == "ok"), pico + row["pico"]
                ids.add(row["request_id"])
            found = await verify_ledger(db)
            totals = await db.fetch("SELECT SUM(pico) AS pico FROM totals WHERE scope LIKE 'account:%' AND time_window = 'all'")  # noqa: E501  # fmt: skip
            return {
                "rows": rows,
                "ids": len(ids),
                "pico": pico,
                "totals_pico": int(totals[0]["pico"] or 0),
                "chain": found.ok,
                "problems": list(found.problems),
            }

    journal = guard.state.journal or Path(guard.state.database.removeprefix("sqlite:///")).parent / "journal"
    return asyncio.run(read()) | {"left_in_journal": len(recover(journal)) if journal.exists() else 0}


def left_over(target: load.Target, key: str) -> int:
    """Replies that an account still gets before it is told 402."""
    for given in range(SPARE + 10):
        result = asyncio.run(load.counted(replace(target, headers={"Authorization": f"Bearer {key}"}), 1, 1))
        if result["errors"]:
            return given
    return SPARE + 10


def main(options: argparse.Namespace) -> int:
    count = options.requests // ACCOUNTS
    # Input is free and output as long as the request allows: what is reserved is what is spent.
    price = {"input_per_mtok": 0, "output_per_mtok": 1}
    each = Decimal(TOKENS) / 10**6
    tier = ours.TIER | {"usd_lifetime": str(each * (count + SPARE))}
    with tempfile.TemporaryDirectory() as name, peers.mock() as upstream:
        with ours.guard(Path(name), upstream, "/chunks=4", tier=tier, price=price) as side:
            config = Path(side.notes["config"])
            target = replace(side.target, body=side.target.body | {"max_tokens": TOKENS})
            keys = [ours.new_key(config, f"soak-{n}") for n in range(ACCOUNTS)]
            time.sleep(1.5)  # the guard looks for new keys twice a second
            watch = Watch(side.pid)
            watch.start()
            begun = time.monotonic()
            results = run(target, keys, options.rate, count)
            seconds = time.monotonic() - begun
            watch.ended.set()
            watch.join()
            left = [left_over(target, key) for key in keys]
        found = books(config)
    sent = sum(r["statuses"].get("200", 0) for r in results)
    slope = watch.slope() * seconds / options.requests * 100_000
    extra = sum(left) + 1  # one more told that the guard was up
    checks = {
        "every request was answered with a reply": sent == count * ACCOUNTS,
        "rows are replies sent": found["rows"] == found["ids"] == sent + extra,
        "the chain verifies": found["chain"],
        "totals are the ledger's sum": found["totals_pico"] == found["pico"] == (sent + extra) * TOKENS * 10**6,
        "limits hold the same money": left == [SPARE] * ACCOUNTS,
        "nothing is left in the journal": found["left_in_journal"] == 0,
        "memory is flat": slope <= SLOPE_MB or options.requests < JUDGED,
    }
    failed = [name for name, fine in checks.items() if not fine]
    result = {
        "benchmark": "guard_soak",
        "requests": count * ACCOUNTS,
        "rate": options.rate,
        "seconds": round(seconds, 1),
        "replies": sent,
        "p50_ms": statistics.median(r["p50_ms"] for r in results),
        "p99_ms": max(r["p99_ms"] for r in results),
        "rss_mb": [round(m, 1) for _, m in watch.samples[:: max(1, len(watch.samples) // 10)]],
        "rss_slope_mb_per_100k": round(slope, 2),
        "left": left,
        "books": found,
        "failed": failed,
        "met": not failed,
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))
    return 0 if not failed else 1


def run(target: load.Target, keys: list[str], rate: float, count: int) -> list[dict[str, Any]]:
    """Open loop, a generator for each account; the last account streams."""
    work = []
    for number, key in enumerate(keys):
        body = target.body | ({"stream": True} if number == len(keys) - 1 else {})
        aim = replace(target, body=body, headers={"Authorization": f"Bearer {key}"})
        each = rate / len(keys)
        command = [sys.executable, load.__file__, "open", f"--rate={each}", f"--seconds={count / each}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(aim)))
        process.stdin.close()
        work.append(process)
    return [json.loads(process.stdout.read()) for process in work if process.stdout is not None]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=400)
    sys.exit(main(parser.parse_args()))
