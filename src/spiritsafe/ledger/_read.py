"""Reading the ledger: the rows as they are exported, a page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import orjson

from spiritsafe.errors import BadInput
from spiritsafe.ledger._rows import PERSONAL
from spiritsafe.spend import dollars
from spiritsafe.state import Database

__all__ = ["COLUMNS", "exported", "read_ledger", "span"]

# An exported reply, in this order; then what verification needs besides.
COLUMNS = (
    "ts", "request_id", "account", "key_id", "end_user", "model", "tokens_in", "tokens_out", "usd", "status",
    "latency_ms", "stream", "n", "temperature", "logprobs", "turns", "policy", "watermark_key_id", "account_slot",
    "twin_commit", "features", "skeleton", "sketch", "org", "ip_prefix", "asn", "user_agent", "payment_id", "prev_hash",
    "hash", "seq", "kind", "pico", "commitments", "salt",
)  # fmt: skip

_PAGE = """
SELECT l.seq, l.kind, l.payload, l.prev_hash, l.hash, p.salt, p.fields
FROM ledger l LEFT JOIN personal p ON p.seq = l.seq
WHERE l.seq > $1 AND l.seq <= $2 ORDER BY l.seq LIMIT $3
"""


async def read_ledger(
    db: Database,
    since: float | None = None,
    kinds: Sequence[str] = ("reply",),
    *,
    until: float | None = None,
    after: int = 0,
    personal: bool = True,
    page: int = 2000,
) -> AsyncIterator[dict[str, Any]]:
    """Rows in the order of the chain, as `ledger export` writes them; never more than a page in memory.

    since, until: only rows with since ≤ ts < until (Unix seconds).  after: only rows with a greater seq: a reader that
    keeps the last one it saw misses none and sees none twice.  personal: with the personal fields that are still there.

    Raises:
        Unavailable: the database is away.
        BadInput: a row is damaged.
    """
    first, last = await span(db, since, until)
    seq = max(after, first - 1)
    while seq < last:
        rows = await db.fetch(_PAGE, seq, last, page)
        if not rows:
            return
        seq = rows[-1]["seq"]
        for row in rows:
            if row["kind"] not in kinds:
                continue
            try:
                line = exported(row, personal=personal)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BadInput(f"ledger row {row['seq']}: damaged; run `spiritsafe ledger verify`") from None
            if (since is None or line["ts"] >= since) and (until is None or line["ts"] < until):
                yield line


async def span(db: Database, since: float | None = None, until: float | None = None) -> tuple[int, int]:
    """The first and last number of rows from that time; (1, 0) if there are none. Writers' clocks differ, so rows
    between the two may be of other times."""
    if since is None and until is None:
        found = await db.fetch("SELECT MIN(seq) AS first, MAX(seq) AS last FROM ledger")
    else:
        since, until = -1e18 if since is None else since, 1e18 if until is None else until
        found = await db.fetch(
            "SELECT MIN(seq) AS first, MAX(seq) AS last FROM ledger WHERE ts >= $1 AND ts < $2", since, until
        )
    return (1, 0) if found[0]["first"] is None else (int(found[0]["first"]), int(found[0]["last"]))


def exported(row: Mapping[str, Any], *, personal: bool = True) -> dict[str, Any]:
    """A database row (seq, kind, payload, prev_hash, hash, salt, fields) as one flat dict.

    Replies have the keys `COLUMNS`; events ts, name, subject, data, id and the chain's.
    """
    payload = orjson.loads(row["payload"])
    payload.update(prev_hash=row["prev_hash"], hash=row["hash"], seq=row["seq"], kind=row["kind"])
    if row["kind"] != "reply":
        return dict(payload)
    payload["usd"] = dollars(payload["pico"])
    payload["commitments"] = payload.pop("personal")
    payload["salt"] = None
    payload.update(dict.fromkeys(PERSONAL))
    if personal and row["salt"] is not None:
        payload["salt"] = row["salt"]
        payload.update(orjson.loads(row["fields"]))
    return {name: payload[name] for name in COLUMNS}
