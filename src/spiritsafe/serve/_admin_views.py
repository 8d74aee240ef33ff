"""What the admin API and the console show of the guard as a whole."""

from __future__ import annotations

import asyncio
from typing import Any

from spiritsafe.ledger import verify_ledger
from spiritsafe.serve._account_rows import iso
from spiritsafe.serve._admin_parts import AdminParts
from spiritsafe.serve._limits._windows import day_number, windows
from spiritsafe.serve._usage import DAYS, Spent, read_spent
from spiritsafe.state import Database

__all__ = ["guard_status", "ledger_status", "spent_by_day", "verify_beside"]


async def guard_status(parts: AdminParts) -> dict[str, Any]:
    """Accounts by status, what everyone spent by window, the ledger, and what `status` says of this process."""
    today = day_number(parts.clock())
    spans = dict(zip(("today", "month", "lifetime"), windows(today), strict=True))
    spent = await _spent(parts, list(spans.values()))
    return {
        "accounts": await parts.accounts.counts(),
        **{name: spent[window].to_dict() for name, window in spans.items()},
        "ledger": await ledger_status(parts),
        "status": dict(parts.status()) if parts.status else {},
    }


async def spent_by_day(parts: AdminParts) -> list[dict[str, Any]]:
    """What everyone spent on each of the last 31 days."""
    today = day_number(parts.clock())
    days = [windows(day)[0] for day in range(today - DAYS + 1, today + 1)]
    spent = await _spent(parts, days)
    return [{"date": day, **spent[day].to_dict()} for day in days]


async def ledger_status(parts: AdminParts) -> dict[str, Any]:
    """The chain's end, its last checkpoint, and whether this process writes it well."""
    head = await parts.db.fetch("SELECT seq, hash, ts FROM ledger ORDER BY seq DESC LIMIT 1")
    last = await parts.db.fetch("SELECT seq, hash, at, public_key FROM checkpoints ORDER BY seq DESC LIMIT 1")
    return {
        "head": {"seq": head[0]["seq"], "hash": head[0]["hash"], "at": iso(head[0]["ts"])} if head else None,
        "checkpoint": dict(last[0]) | {"at": iso(last[0]["at"])} if last else None,
        "healthy": parts.ledger.healthy,
        "backlog": parts.ledger.backlog,
    }


async def verify_beside(url: str) -> dict[str, Any]:
    """Verify the whole ledger on a thread and connections of its own: it reads for long, and requests must not wait.

    Raises:
        Unavailable: the database is away.
    """

    async def verify() -> dict[str, Any]:
        async with await Database.open(url, migrate=False) as db:
            return (await verify_ledger(db)).to_dict()

    return await asyncio.to_thread(lambda: asyncio.run(verify()))


async def _spent(parts: AdminParts, spans: list[str]) -> dict[str, Spent]:
    """By window, over the models served now and those with a price."""
    config = parts.config
    scopes = {f"model:{model}" for model in (*config.models, *(entry.model for entry in config.prices))}
    found = await read_spent(parts.db, scopes, spans)
    sums: dict[str, Spent] = dict.fromkeys(spans, Spent())
    for (_, window), spent in found.items():
        sums[window] = Spent(*map(sum, zip(sums[window], spent, strict=True)))
    return sums
