"""Does the ledger still say what was written? Every row, its place, its personal fields, checkpoints and totals."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from spiritsafe.ledger._check import ChainCheck, Link
from spiritsafe.ledger._checkpoints import Checkpoint
from spiritsafe.ledger._read import span
from spiritsafe.ledger._sums import Sums
from spiritsafe.ledger._verification import Verification
from spiritsafe.ledger._verify_file import check_file
from spiritsafe.progress import Progress, Silent
from spiritsafe.state import Database, Transaction

__all__ = ["verify_ledger"]

_PAGE = 500
_BREATH = 50  # rows checked before other tasks have their turn: a guard verifies while it serves
_ROWS = """
SELECT l.seq, l.kind, l.ts, l.request_id, l.account, l.payload, l.prev_hash, l.hash, p.salt, p.fields
FROM ledger l LEFT JOIN personal p ON p.seq = l.seq
WHERE l.seq > $1 ORDER BY l.seq LIMIT $2
"""
_CHECKPOINTS = "SELECT * FROM checkpoints WHERE seq > $1 AND seq <= $2 ORDER BY seq"
_TOTALS = """
SELECT scope, time_window, requests, tokens_in, tokens_out, pico FROM totals
WHERE scope > $1 OR (scope = $1 AND time_window > $2) ORDER BY scope, time_window LIMIT $3
"""
_STRAY = """
SELECT p.seq FROM personal p WHERE NOT EXISTS (SELECT 1 FROM ledger l WHERE l.seq = p.seq) ORDER BY p.seq LIMIT 3
"""
_EXACT = 1 << 63


async def verify_ledger(
    source: Database | Path,
    *,
    public_keys: Collection[str] = (),
    expect: Iterable[tuple[int, str]] = (),
    partial: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Check a database, or a file that `export_ledger` wrote with `everything`, a page at a time. A guard may go on
    writing meanwhile.

    public_keys: hex Ed25519 keys that checkpoints must be signed with. Without them a checkpoint shows only that its
    signer saw the chain, not who that was.  expect: rows (seq, hash) known from elsewhere; without them nothing can
    show that the end was not cut off.  partial: allow gaps, as in a file of some days or without events.

    Raises:
        Unavailable: the database is away.
        BadInput: the file cannot be read.
    """
    check = ChainCheck(public_keys, expect, partial)
    if isinstance(source, Path):
        check_file(source, check, progress or Silent())
    else:
        await _check_database(source, check, progress or Silent())
    return check.finish()


async def _check_database(db: Database, check: ChainCheck, progress: Progress) -> None:
    with Sums() as sums:
        place, (_, last) = -_EXACT, await span(db)
        more = True
        while more and place < last:
            async with db.transaction(write=False) as tx:
                more = place < (place := await _page(tx, check, sums, place))
            progress.update("verify", max(place, 0), max(last, place))
        # rows that have come since, and the totals, as they were at one moment
        async with db.transaction(write=False) as tx:
            if db.dialect == "postgresql":
                await tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            while place < (place := await _page(tx, check, sums, place)):
                pass
            for row in await tx.fetch(_CHECKPOINTS, max(place, 0), _EXACT - 1):
                _checkpoint(check, row)
            for row in await tx.fetch(_STRAY):
                check.problem(row["seq"], "personal fields are kept for it, but there is no such row")
            await _totals(tx, check, sums)


async def _page(tx: Transaction, check: ChainCheck, sums: Sums, after: int) -> int:
    """Check the next rows; the number of the last one seen, `after` if there are no more."""
    rows = await tx.fetch(_ROWS, after, _PAGE)
    if not rows:
        return after
    last: int = rows[-1]["seq"]
    checkpoints = {row["seq"]: row for row in await tx.fetch(_CHECKPOINTS, after, last)}
    counted = []
    for place, row in enumerate(rows):
        if place % _BREATH == 0:
            await asyncio.sleep(0)
        added = check.follow(_link(row))
        if added is not None:
            counted.append(added)
        if (signed := checkpoints.pop(row["seq"], None)) is not None:
            _checkpoint(check, signed)
    for seq in checkpoints:
        check.problem(seq, "missing, although a checkpoint was signed over it")
    sums.add(counted)
    return last


def _link(row: Mapping[str, Any]) -> Link:
    claims = {"ts": row["ts"]}
    if row["kind"] == "reply":
        claims |= {"request_id": row["request_id"], "account": row["account"]}
    else:
        claims |= {"id": row["request_id"], "subject": row["account"]}
    faults: tuple[str, ...] = ()
    personal: dict[str, Any] = {}
    if row["fields"] is not None:
        try:
            personal = dict(orjson.loads(row["fields"]))
        except (ValueError, TypeError):
            faults = ("its personal fields cannot be read",)
    payload = str(row["payload"]).encode("utf-8", "surrogatepass")
    return Link(
        row["seq"], str(row["kind"]), str(row["prev_hash"]), str(row["hash"]), payload, claims, row["salt"], personal,
        faults,
    )  # fmt: skip


def _checkpoint(check: ChainCheck, row: Mapping[str, Any]) -> None:
    try:
        check.checkpoint(Checkpoint.read(row))
    except (ValueError, TypeError):
        check.problem(row["seq"], "the checkpoint over it cannot be read")


async def _totals(tx: Transaction, check: ChainCheck, sums: Sums) -> None:
    """Compare the totals with the sums of the rows, both ways."""
    check.totals = "match"
    place = ("", "")
    while rows := await tx.fetch(_TOTALS, *place, _PAGE):
        for row in rows:
            place = (row["scope"], row["time_window"])
            stored = tuple(row[name] for name in ("requests", "tokens_in", "tokens_out", "pico"))
            summed = sums.take(place)
            if summed is None or not all(map(_equal, stored, summed)):
                _differ(check, place, f"says {_shown(stored)}, the rows {_shown(summed)}")
    for place in sums.left():
        _differ(check, place, "is missing, although rows count towards it")


def _differ(check: ChainCheck, place: tuple[str, str], what: str) -> None:
    check.totals = "differ"
    check.problem(None, f"total of {place[0]}, {place[1]}: {what}")


def _equal(stored: Any, summed: int) -> bool:
    if stored == summed:
        return True
    # from 2^63 pico-dollars on, 9.2 million dollars, SQLite adds in floating point
    return isinstance(stored, float) and summed >= _EXACT and abs(stored - summed) < summed * 1e-9


def _shown(amounts: tuple[Any, ...] | None) -> str:
    if amounts is None:
        return "nothing"
    return "{} requests, {}+{} tokens, {} pico-dollars".format(*amounts)
