"""What the ledger says was spent, on SQLite and Postgres; and the limiter that a configuration asks for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from limits_kit import DAY, NOON, USD, guard_config, identity
from spiritsafe.errors import BadInput
from spiritsafe.ledger import Ledger, LedgerRow
from spiritsafe.serve._limits import (
    Denied,
    Granted,
    MemoryLimiter,
    RedisLimiter,
    Total,
    buckets_for,
    open_limiter,
    totals_source,
)
from spiritsafe.serve._limits import _totals as module
from spiritsafe.serve._types import Demand
from spiritsafe.state import Database

ACCOUNT = """INSERT INTO accounts (id, name, org, tier, created, cluster, changed)
             VALUES ($1, $1, NULL, 'default', 0, $2, 0)"""


def row(request_id: str, account: str, pico: int, ts: float = NOON, **more: Any) -> LedgerRow:
    return LedgerRow(ts, request_id, account, f"key_of_{account}", "m", tokens_in=10, tokens_out=5, pico=pico, **more)


async def filled(db: Database) -> Ledger:
    ledger = await Ledger.open(db, commit_ms=1)
    for account, cluster in (("a", "c1"), ("b", "c1"), ("c", "c2")):
        await db.execute(ACCOUNT, account, cluster)
    ledger.append(row("r1", "a", 1001, org="acme"))
    ledger.append(row("r2", "a", 2000, NOON - DAY))
    ledger.append(row("r3", "b", 4000, NOON - 30 * DAY))
    ledger.append(row("r4", "c", 8 * 10**18))
    await ledger.flush()
    return ledger


async def test_totals_of_scopes_and_windows_and_which_requests_have_a_row(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        ledger = await filled(db)
        source = totals_source(db)
        wanted = [
            ("account:a", "2026-11-24"), ("account:a", "all"), ("account:a", "2026-10"), ("key:key_of_a", "2026-11"),
            ("org:acme", "2026-11-24"), ("model:m", "2026-11-24"), ("cluster:c1", "all"), ("cluster:c1", "2026-11"),
            ("cluster:none", "all"), ("account:o'brien", "all"),
        ]  # fmt: skip
        seed = await source(wanted, ["r1", "r3", "none"])
        assert {pair: seed.totals[pair] for pair in wanted if pair in seed.totals} == {
            ("account:a", "2026-11-24"): Total(1001, 1, 15),
            ("account:a", "all"): Total(3001, 2, 30),
            ("key:key_of_a", "2026-11"): Total(3001, 2, 30),
            ("org:acme", "2026-11-24"): Total(1001, 1, 15),
            ("model:m", "2026-11-24"): Total(8 * 10**18 + 1001, 2, 30),
            ("cluster:c1", "all"): Total(7001, 3, 45),
            ("cluster:c1", "2026-11"): Total(3001, 2, 30),
        }
        assert seed.committed == {"r1", "r3"}
        assert await source([], []) == await source((), {"none"})
        await ledger.aclose()


async def test_more_than_fits_one_statement(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    async with await Database.open(database_url) as db:
        ledger = await filled(db)
        wanted = [(f"account:{name}", "all") for name in "abcde"] + [("cluster:c1", "all"), ("cluster:c2", "all")]
        seed = await totals_source(db)(wanted, ["r1", "r2", "r3", "x", "r4"])
        assert {scope for scope, _ in seed.totals} == {
            "account:a",
            "account:b",
            "account:c",
            "cluster:c1",
            "cluster:c2",
        }
        assert seed.committed == {"r1", "r2", "r3", "r4"}
        await ledger.aclose()


async def test_ten_thousand_of_each(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        ledger = await filled(db)
        wanted = [(f"account:{number}", "all") for number in range(10_000)] + [("account:a", "all")]
        seed = await totals_source(db)(wanted, [f"x{number}" for number in range(10_000)] + ["r1"])
        assert seed.totals == {("account:a", "all"): Total(3001, 2, 30)}
        assert seed.committed == {"r1"}
        await ledger.aclose()


async def test_a_restarted_guard_goes_on_from_its_ledger(database_url: str) -> None:
    config, who = guard_config(tiers={"default": {"usd_lifetime": 1}}), identity()
    async with await Database.open(database_url) as db:
        ledger = await Ledger.open(db, commit_ms=1)
        for nano, expected in ((USD // 2, Granted), (USD // 2, Granted), (1, Denied)):
            limiter = await open_limiter(config, worker="w", db=db, flush=ledger.flush)
            assert isinstance(limiter, MemoryLimiter)
            plan = buckets_for(config, who, "m", NOON)
            name = f"{nano}.{id(limiter)}"
            outcome = await limiter.reserve(plan.demand(Demand(nano=nano)), name)
            assert isinstance(outcome, expected)
            if isinstance(outcome, Granted):
                ledger.append(row(name, "acct_1", nano * 1000))
                await limiter.settle(outcome.ticket, Demand(nano=nano))
                await ledger.flush()
            await limiter.aclose()
        await ledger.aclose()


async def test_the_limiter_that_is_configured(redis_port: int, tmp_path: Any) -> None:
    async with await Database.open(f"sqlite:///{tmp_path / 'guard.db'}") as db:
        ledger = await Ledger.open(db)
        shared = guard_config(state={"limits": f"redis://127.0.0.1:{redis_port}/9"})
        limiter = await open_limiter(shared, worker="w", db=db, flush=ledger.flush)
        assert isinstance(limiter, RedisLimiter)
        assert limiter.healthy
        assert limiter._store.lease_ms == (1800 + 600) * 1000
        plan = buckets_for(guard_config(tiers={"default": {"usd_per_day": 1}}), identity(), "m", NOON)
        assert isinstance(await limiter.reserve(plan.demand(Demand(nano=1)), "a"), Granted)
        await limiter.aclose()
        await ledger.aclose()


async def test_a_secret_in_the_url_is_not_in_any_error(redis_port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    limiter = await RedisLimiter.open(
        f"redis://user:hunter2@127.0.0.1:{redis_port}/0", worker="w", totals=nobody, flush=nobody, wait_s=0.3
    )
    assert not limiter.healthy
    await limiter.aclose()
    assert "127.0.0.1" in caplog.text
    assert "hunter2" not in caplog.text
    with pytest.raises(BadInput, match="not a Redis URL") as error:
        await RedisLimiter.open("http://user:hunter2@host/0", worker="w", totals=nobody, flush=nobody)
    assert "hunter2" not in str(error.value)


async def nobody(*_: Any) -> Any:
    """Knows nothing."""
    await asyncio.sleep(0)
