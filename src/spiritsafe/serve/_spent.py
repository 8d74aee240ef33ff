"""What the ledger has counted, for limits that begin to count: after a start, a new window, a lost Redis."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

from spiritsafe.serve._limits import Seed, Total, TotalsSource
from spiritsafe.state import Database, Transaction

__all__ = ["totals_source"]

_AT_ONCE = 200
_CLUSTER = "cluster:"
T = TypeVar("T")


def totals_source(db: Database) -> TotalsSource:
    """Reads the ledger's running totals. What is settled but not yet written is the limiter's to know."""

    async def read(wanted: Collection[tuple[str, str]], ids: Collection[str]) -> Seed:
        async with db.transaction(write=False) as tx:
            totals = await _totals(tx, [pair for pair in wanted if not pair[0].startswith(_CLUSTER)])
            for scope, window in wanted:
                if scope.startswith(_CLUSTER):
                    totals[scope, window] = await _cluster(tx, scope.removeprefix(_CLUSTER), window)
            return Seed(totals, await _committed(tx, ids))

    return read


async def _totals(tx: Transaction, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Total]:
    found: dict[tuple[str, str], Total] = {}
    for some in _batches(pairs):
        places = ", ".join(f"(${2 * i + 1}, ${2 * i + 2})" for i in range(len(some)))
        rows = await tx.fetch(
            "SELECT scope, time_window, pico, requests, tokens_in + tokens_out AS tokens FROM totals"  # noqa: S608
            f" WHERE (scope, time_window) IN (VALUES {places})",
            *[value for pair in some for value in pair],
        )
        for row in rows:
            found[row["scope"], row["time_window"]] = Total(row["pico"], row["requests"], row["tokens"])
    return found


async def _cluster(tx: Transaction, cluster: str, window: str) -> Total:
    """A cluster's totals are those of the accounts that are in it now."""
    rows = await tx.fetch(
        "SELECT SUM(t.pico) AS pico, SUM(t.requests) AS requests, SUM(t.tokens_in + t.tokens_out) AS tokens"
        " FROM totals t JOIN accounts a ON t.scope = 'account:' || a.id WHERE a.cluster = $1 AND t.time_window = $2",
        cluster,
        window,
    )
    row = rows[0]
    return Total(int(row["pico"] or 0), int(row["requests"] or 0), int(row["tokens"] or 0))


async def _committed(tx: Transaction, ids: Collection[str]) -> frozenset[str]:
    """Those of the request ids that have a row."""
    found: set[str] = set()
    for some in _batches(list(ids)):
        places = ", ".join(f"${i + 1}" for i in range(len(some)))
        rows = await tx.fetch(f"SELECT request_id FROM ledger WHERE request_id IN ({places})", *some)  # noqa: S608
        found.update(row["request_id"] for row in rows)
    return frozenset(found)


def _batches(values: Sequence[T]) -> list[Sequence[T]]:
    return [values[i : i + _AT_ONCE] for i in range(0, len(values), _AT_ONCE)]
