"""Ledger rows for tests, and ways to look at what became of them."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import Any

from spiritsafe.ledger import LedgerRow
from spiritsafe.state import Database

START = 1_764_000_000.0  # 2025-11-24 16:00 UTC


def row(number: int, **changes: Any) -> LedgerRow:
    """A row like real ones; `number` makes it differ from others."""
    values: dict[str, Any] = {
        "ts": START + number,
        "request_id": f"req_{number:06d}",
        "account": f"acct_{number % 3}",
        "key_id": f"key_{number % 4}",
        "model": "smollm2-135m",
        "tokens_in": 10 + number,
        "tokens_out": 3 * number,
        "pico": 1_000_003 * number,
        "latency_ms": 12.5,
        "temperature": 0.7,
        "features": {"elicits": False, "projection": [1, 2, number]},
        "skeleton": "5e" * 8,
        "org": "acme" if number % 2 else None,
        "end_user": f"user-{number}",
        "ip_prefix": "203.0.113.0/24",
    }
    return LedgerRow(**(values | changes))


async def stored(db: Database, table: str = "ledger") -> list[dict[str, Any]]:
    return [dict(found) for found in await db.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")]


async def sums(db: Database) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """The table `totals`."""
    names = ("requests", "tokens_in", "tokens_out", "pico")
    return {(t["scope"], t["time_window"]): tuple(t[n] for n in names) for t in await stored(db, "totals")}


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail, half done, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
