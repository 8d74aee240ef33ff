"""Numbers that count on in the database: of changes, so that other processes see what is new, and of slots."""

from __future__ import annotations

from spiritsafe.state import Transaction

__all__ = ["next_change", "next_number"]


async def next_change(tx: Transaction) -> int:
    """The number of this change. Taking it first makes writers wait for each other, so that commits come in the order
    of their numbers and a reader that asks for what is newer misses nothing."""
    return await next_number(tx, "changes")


async def next_number(tx: Transaction, counter: str) -> int:
    """Count on and return the new value, 1 at first."""
    rows = await tx.fetch(
        "INSERT INTO counters (name, value) VALUES ($1, 1)"
        " ON CONFLICT (name) DO UPDATE SET value = counters.value + 1 RETURNING value",
        counter,
    )
    return int(rows[0]["value"])
