"""The operator's allowance for second replies: shared, exact, and not renewed by a restart."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import accounts_kit as kit
from spiritsafe.records import Usage
from spiritsafe.serve._limits import Granted
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
        granted = [(n, grant) for n, grant in enumerate(held) if grant is not None]
        assert len(granted) == 7
        for n, grant in granted[:6]:
            await workers[n % 2].settle(call(n), grant, Usage(10, 4))
        again = SecondReplies(given(7 * WORST + WORST // 2), other, clock=clock)  # the seventh died with its process
        taken = WORST + 6 * PAID
        more = [await again.reserve(call(n)) for n in range(20)]
        assert sum(grant is not None for grant in more) == (7 * WORST + WORST // 2 - taken) // WORST
        clock.now += 86_400
        assert isinstance(await again.reserve(call(0)), Granted), "another day, another allowance"


async def test_none_came_costs_nothing_and_none_set_counts_nothing(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        second = SecondReplies(given(WORST), db, clock=kit.Clock())
        for _ in range(3):
            granted = await second.reserve(call(1))
            assert granted is not None and await second.reserve(call(2)) is None
            await second.settle(call(1), granted, None)
        unlimited = SecondReplies(kit.config(), db)
        free = await unlimited.reserve(call(3))
        assert free is not None
        await unlimited.settle(call(3), free, Usage(10, 4))
        assert [row["value"] for row in await db.fetch("SELECT value FROM counters")] == [0]
