"""The operator's allowance for second replies: shared, exact, and not renewed by a restart."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accounts_kit as kit
from spiritsafe.records import Usage
from spiritsafe.serve._second_replies import SecondReplies
from spiritsafe.spend import Price
from spiritsafe.state import Database

PRICE = Price(input_per_mtok=Decimal(1), output_per_mtok=Decimal(2))
WORST, PAID = 10_000 + 200_000, 10_000 + 8_000  # nano-dollars


def call(number: int) -> Any:
    """What is looked at of a call: ten tokens in, at most a hundred out."""
    return SimpleNamespace(id=f"req_{number}", price=PRICE, tokens_in=10, applied=SimpleNamespace(max_tokens=100))


def given(nano: int) -> Any:
    return kit.config(twins={"usd_per_day": str(Decimal(nano) / 10**9)})


async def test_of_many_at_once_only_those_pass_that_fit_together(database_url: str) -> None:
    clock = kit.Clock()
    async with await Database.open(database_url) as one, await Database.open(database_url) as other:
        workers = [SecondReplies(given(7 * WORST + WORST // 2), db, clock=clock) for db in (one, other)]
        held = await asyncio.gather(*(workers[n % 2].reserve(call(n)) for n in range(20)))
        granted = [n for n, grant in enumerate(held) if grant]
        assert len(granted) == 7
        for n in granted[:6]:
            await workers[n % 2].settle(call(n), Usage(10, 4))
        again = SecondReplies(given(7 * WORST + WORST // 2), other, clock=clock)  # the seventh died with its process
        taken = WORST + 6 * PAID
        more = [await again.reserve(call(n)) for n in range(20, 40)]
        assert sum(more) == (7 * WORST + WORST // 2 - taken) // WORST
        clock.now += 86_400
        assert await again.reserve(call(100)), "another day, another allowance"


async def test_none_came_costs_nothing_and_none_set_counts_nothing(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        second = SecondReplies(given(WORST), db, clock=kit.Clock())
        for _ in range(3):
            assert await second.reserve(call(1)) and not await second.reserve(call(2))
            await second.settle(call(1), None)
        unlimited = SecondReplies(kit.config(), db)
        assert await unlimited.reserve(call(3))
        await unlimited.settle(call(3), Usage(10, 4))
        assert [row["value"] for row in await db.fetch("SELECT value FROM counters")] == [0]


async def test_what_a_dead_process_held_is_given_back_once(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        dead, heir = (SecondReplies(given(2 * WORST), db, clock=kit.Clock()) for _ in range(2))
        assert await dead.reserve(call(1)) and await dead.reserve(call(2)) and not await heir.reserve(call(3))
        await dead.settle(call(1), Usage(10, 4))  # the process dies after this
        for _ in range(2):
            await heir.give_back(["req_1", "req_2", "req_of_no_twin"])
        assert [row["value"] for row in await db.fetch("SELECT value FROM counters")] == [PAID]
        assert await db.fetch("SELECT * FROM second_replies") == []


async def test_what_could_not_be_settled_is_settled_later(tmp_path: Path) -> None:
    """The database cannot be written when the replies are there: the worst case stays until it can."""
    url = f"sqlite:///{tmp_path / 'guard.db'}"
    async with await Database.open(url) as db:
        second = SecondReplies(given(WORST), db, clock=kit.Clock())
        assert await second.reserve(call(1))
        await db.execute("ALTER TABLE second_replies RENAME TO away")
        await second.settle(call(1), Usage(10, 4))
        assert not await second.reserve(call(2))
        assert [row["value"] for row in await db.fetch("SELECT value FROM counters")] == [WORST]
        await db.execute("ALTER TABLE away RENAME TO second_replies")
        await second.write_owed()
        assert [row["value"] for row in await db.fetch("SELECT value FROM counters")] == [PAID]
