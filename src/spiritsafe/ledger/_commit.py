"""One group commit: a batch of sealed entries takes its place in the chain, all of it or nothing."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson

from spiritsafe.ledger._chain import GENESIS, chain_hash
from spiritsafe.ledger._checkpoints import Checkpoint, add_checkpoint
from spiritsafe.ledger._seal import Sealed
from spiritsafe.ledger._totals import ADD_TOTALS, spread
from spiritsafe.state import Database, Transaction

__all__ = ["Committed", "commit"]

_LOCK = 0x1ED6E4  # the advisory lock that writers of one Postgres share; SQLite has one writer at a time anyway

_ADD_ROW = (
    "INSERT INTO ledger (seq, kind, ts, request_id, account, payload, prev_hash, hash)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
)
_HEAD = """
SELECT NULL AS request_id, seq, hash FROM ledger WHERE seq = (SELECT MAX(seq) FROM ledger)
UNION ALL SELECT request_id, seq, NULL FROM ledger WHERE request_id"""
_STANDING = {
    "sqlite": f"{_HEAD} IN (SELECT value FROM json_each($1))",  # noqa: S608
    "postgresql": f"{_HEAD} = ANY($1::text[])",
}
_ADD_PERSONAL = "INSERT INTO personal (seq, ts, account, salt, fields) VALUES ($1, $2, $3, $4, $5)"
_VALUES = re.compile(r" VALUES \((.*?)\)", re.DOTALL)


class Committed(NamedTuple):
    """seqs: the number of each entry, in the batch's order; that of the earlier row where its id was known already.
    written: how many were new.  head: the chain's last row, (seq, hash)."""

    seqs: list[int]
    written: int
    head: tuple[int, str]


async def commit(
    db: Database, batch: Sequence[Sealed], checkpoint: Callable[[int, str], Checkpoint] | None = None
) -> Committed:
    """Chain `batch` after whatever any writer committed before, with totals, and a checkpoint over its last row.

    An entry whose id is in the ledger already is skipped: a commit may be repeated if its outcome is unknown.

    Raises:
        Unavailable: the database is away or full; nothing was written, or, if it went away at the very end, all of it.
    """
    async with db.transaction() as tx:
        if db.dialect == "postgresql":
            await tx.fetch("SELECT pg_advisory_xact_lock($1)", _LOCK)
        seq, head, known = await _standing(tx, db.dialect, [sealed.id for sealed in batch])
        seqs, rows, personal, counted = [], [], [], []
        for sealed in batch:
            if (old := known.get(sealed.id)) is not None:
                seqs.append(old)
                continue
            seq += 1
            after, head = head, chain_hash(seq, sealed.kind, head, sealed.payload)
            known[sealed.id] = seq
            seqs.append(seq)
            rows.append((seq, sealed.kind, sealed.ts, sealed.id, sealed.account, sealed.payload.decode(), after, head))
            if sealed.personal is not None:
                personal.append((seq, sealed.ts, sealed.account, sealed.salt, sealed.personal))
            if sealed.counted is not None and sealed.amounts is not None:
                counted.append((sealed.counted, sealed.amounts))
        await _add(tx, db.dialect, _ADD_ROW, rows)
        await _add(tx, db.dialect, _ADD_PERSONAL, personal)
        # sorted, so that the pages of the index are visited in order
        totals = [(*key, *amounts) for key, amounts in sorted(spread(counted).items())]
        await _add(tx, db.dialect, ADD_TOTALS, totals)
        if checkpoint is not None and seq:
            await add_checkpoint(tx, checkpoint(seq, head))
    return Committed(seqs, len(rows), (seq, head))


async def _add(tx: Transaction, dialect: str, sql: str, rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows. On SQLite in one statement, fed with JSON: a statement a row would give the interpreter up and take
    it back for each, and the event loop would wait every time."""
    if not rows:
        return
    if dialect == "sqlite":
        await tx.execute(_at_once(sql), orjson.dumps(rows).decode())
    else:
        await tx.execute_many(sql, rows)


@functools.lru_cache(maxsize=8)
def _at_once(sql: str) -> str:
    def select(values: re.Match[str]) -> str:
        columns = ", ".join(f"json_extract(value, '$[{i}]')" for i in range(values[1].count("$")))
        return f" SELECT {columns} FROM json_each($1) WHERE true"  # noqa: S608 — "WHERE": ON CONFLICT is no join then

    return _VALUES.sub(select, sql, count=1)


async def _standing(tx: Transaction, dialect: str, ids: list[str]) -> tuple[int, str, dict[str, int]]:
    """The chain's last row, and the numbers of those ids that the ledger has already; in one query, because each
    costs a switch of threads or a way to the server and back."""
    argument: Any = orjson.dumps(ids).decode() if dialect == "sqlite" else ids
    seq, head, known = 0, GENESIS, {}
    for row in await tx.fetch(_STANDING[dialect], argument):
        if row["hash"] is None:
            known[row["request_id"]] = row["seq"]
        else:
            seq, head = row["seq"], row["hash"]
    return seq, head, known
