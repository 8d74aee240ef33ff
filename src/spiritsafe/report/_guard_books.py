"""The newest rows of the ledger, read once: are they whole, do totals agree, and what do they say of the replies?"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from spiritsafe.ledger._check import ChainCheck, Link
from spiritsafe.ledger._checkpoints import Checkpoint
from spiritsafe.ledger._totals import Amounts, Counted, day_of, spread
from spiritsafe.progress import Progress, Silent
from spiritsafe.report._guard_replies import Replies, Seen
from spiritsafe.state import Database, Transaction

__all__ = ["Books", "read_books"]

_PAGE = 2000
_OLDER_CHECKPOINTS = 1000
_DAY_S = 86400.0
_EXACT = 1 << 63
_SHOWN = 20

_ROWS = """
SELECT seq, kind, ts, request_id, account, payload, prev_hash, hash FROM ledger WHERE seq > $1 ORDER BY seq LIMIT $2
"""
_CHECKPOINTS = "SELECT * FROM checkpoints WHERE seq > $1 AND seq <= $2 ORDER BY seq"
_OLDER = """
SELECT c.*, l.hash AS row_hash FROM checkpoints c LEFT JOIN ledger l ON l.seq = c.seq
WHERE c.seq <= $1 ORDER BY c.seq DESC LIMIT $2
"""
_BEFORE = """
SELECT MAX(ts) AS ts FROM (SELECT ts, seq FROM ledger ORDER BY ts DESC LIMIT $1) AS newest WHERE seq <= $2
"""
_TOTALS = """
SELECT scope, time_window, requests, tokens_in, tokens_out, pico FROM totals
WHERE $1 = '' OR (LENGTH(time_window) = 10 AND time_window >= $1)
"""


@dataclass(frozen=True, slots=True)
class Books:
    """rows: how many were read, numbers `first` to `last`.  head: hash of the last.  from_start: no older ones exist.

    checkpoints: signatures checked over rows read; `older_checkpoints` over older rows.  signers: their keys, hex.
    anchored: all are by a key that was given.  signed_row, signed_at: the newest checkpoint; signed_at in Unix seconds.
    totals: whether the running sums are those of the rows; of days from `totals_since` on ("" for all time).
    problems: of the chain, the first twenty of `problem_count`.  differences: of the totals, the first twenty.
    """

    rows: int
    replies: int
    events: int
    first: int
    last: int
    head: str
    from_start: bool
    problems: tuple[str, ...]
    problem_count: int
    checkpoints: int
    older_checkpoints: int
    signers: tuple[str, ...]
    anchored: bool
    signed_row: int
    signed_at: float | None
    totals: Literal["match", "differ", "absent"]
    totals_since: str
    differences: tuple[str, ...]
    recent: Replies

    @property
    def whole(self) -> bool:
        """The chain of the rows read has no fault; the totals are another question."""
        return self.problem_count == 0


async def read_books(
    db: Database,
    *,
    since: float,
    most: int,
    names: bool = True,
    public_keys: Collection[str] = (),
    progress: Progress | None = None,
) -> Books:
    """Read the newest `most` rows, a page at a time; a guard may go on writing meanwhile. Personal fields stay unread.

    since: Unix seconds; replies from then on are counted in `recent`.  names: problems may name organisations and
    clusters.  public_keys: hex; whose signatures count.

    Raises:
        Unavailable: the database is away.
    """
    reading = _Reading(since, names, public_keys)
    progress = progress or Silent()
    start, head = await _start(db, most, reading)
    place = start
    while place < head:
        async with db.transaction(write=False) as tx:
            place = await reading.page(tx, place)
        progress.update("ledger", place - start, max(head, place) - start)
    async with db.transaction(write=False) as tx:
        if db.dialect == "postgresql":
            await tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        while place < (place := await reading.page(tx, place)):
            pass
        for row in await tx.fetch(_CHECKPOINTS, place, _EXACT - 1):
            reading.checkpoint(row)
        await reading.older_checkpoints(tx, start)
        await reading.compare_totals(tx, start)
    return reading.books(start)


async def _start(db: Database, most: int, reading: _Reading) -> tuple[int, int]:
    """The number of the last row not read (0: all are), and of the last row. The chain is followed from there."""
    head = (await db.fetch("SELECT MAX(seq) AS seq FROM ledger"))[0]["seq"] or 0
    start = max(0, head - most)
    if start:
        rows = await db.fetch("SELECT seq, hash FROM ledger WHERE seq <= $1 ORDER BY seq DESC LIMIT 1", start)
        if rows:
            reading.check.seq, reading.check.hash = rows[0]["seq"], rows[0]["hash"]
    return start, head


class _Reading:
    """Follows the chain and keeps what it sees."""

    def __init__(self, since: float, names: bool, public_keys: Collection[str]) -> None:
        self.check = ChainCheck((), (), partial=False)
        self._since, self._names, self._keys = since, names, {key.lower() for key in public_keys}
        self._seen, self._rows = Seen(), 0
        self._counted: dict[Counted, Amounts] = {}
        self._oldest = float("inf")  # time of the newest row that was not read
        self._older, self._signers = 0, set[str]()
        self._signed: tuple[int, float | None] = (0, None)
        self._totals: Literal["match", "differ", "absent"] = "absent"
        self._totals_since, self._differences = "", list[str]()

    async def page(self, tx: Transaction, after: int) -> int:
        """Check and count the next rows; the number of the last one seen, `after` if there are no more."""
        rows = await tx.fetch(_ROWS, after, _PAGE)
        if not rows:
            return after
        last: int = rows[-1]["seq"]
        self._rows += len(rows)
        checkpoints = {row["seq"]: row for row in await tx.fetch(_CHECKPOINTS, after, last)}
        for row in rows:
            raw = str(row["payload"]).encode("utf-8", "surrogatepass")
            added = self.check.follow(_link(row, raw))
            if added is not None:
                self._count(*added)
                if row["ts"] >= self._since:
                    with contextlib.suppress(TypeError, ValueError):  # a changed row, which was reported as one
                        self._seen.add(orjson.loads(raw))
            if (signed := checkpoints.pop(row["seq"], None)) is not None:
                self.checkpoint(signed)
        for seq in checkpoints:
            self.check.problem(seq, "missing, although a checkpoint was signed over it")
        return last

    def _count(self, counted: Counted, amounts: Amounts) -> None:
        known = self._counted.get(counted)
        if known is not None:
            amounts = (
                known[0] + amounts[0], known[1] + amounts[1], known[2] + amounts[2], known[3] + amounts[3]
            )  # fmt: skip
        self._counted[counted] = amounts

    def checkpoint(self, row: Mapping[str, Any]) -> None:
        """Check one over a row that was just read."""
        try:
            checkpoint = Checkpoint.read(row)
        except (ValueError, TypeError):
            self.check.problem(row["seq"], "the checkpoint over it cannot be read")
            return
        self.check.checkpoint(checkpoint)
        self._signer(checkpoint)

    async def older_checkpoints(self, tx: Transaction, start: int) -> None:
        """Do the newest checkpoints over rows that were not read still fit those rows?"""
        for row in await tx.fetch(_OLDER, start, _OLDER_CHECKPOINTS):
            self._older += 1
            try:
                checkpoint = Checkpoint.read(row)
            except (ValueError, TypeError):
                self.check.problem(row["seq"], "the checkpoint over it cannot be read")
                continue
            self._signer(checkpoint)
            if not checkpoint.holds():
                self.check.problem(checkpoint.seq, "the checkpoint over it has a bad signature")
            elif row["row_hash"] != checkpoint.hash:
                self.check.problem(checkpoint.seq, "is not the row that the checkpoint over it was signed for")

    def _signer(self, checkpoint: Checkpoint) -> None:
        self._signers.add(checkpoint.public_key.lower())
        if checkpoint.seq > self._signed[0]:
            self._signed = (checkpoint.seq, checkpoint.at)

    async def compare_totals(self, tx: Transaction, start: int) -> None:
        """Are the running sums those of the rows? Only for days of which every row was read."""
        if start:
            before = (await tx.fetch(_BEFORE, self._rows + 1, start))[0]["ts"]
            if before is None:  # those rows are gone, which was reported
                return
            self._oldest = before
            self._totals_since = day_of(before + _DAY_S)
        else:
            self._oldest = float("-inf")
        sums = {key: tuple(sum_) for key, sum_ in spread(self._counted.items()).items() if self._compared(key[1])}
        if start and not sums:
            return
        self._totals = "match"
        for row in await tx.fetch(_TOTALS, self._totals_since):
            place = (row["scope"], row["time_window"])
            stored = tuple(row[name] for name in ("requests", "tokens_in", "tokens_out", "pico"))
            summed = sums.pop(place, None)
            if summed is None or not all(map(_equal, stored, summed)):
                self._differ(place, stored, summed)
        for place, summed in sums.items():
            self._differ(place, None, summed)

    def _compared(self, window: str) -> bool:
        return not self._totals_since or (len(window) == 10 and window >= self._totals_since)

    def _differ(self, place: tuple[str, str], stored: tuple[Any, ...] | None, summed: tuple[Any, ...] | None) -> None:
        self._totals = "differ"
        if len(self._differences) < _SHOWN:
            what = f"the totals say {_shown(stored)}, the rows {_shown(summed)}"
            scope = "an organisation" if place[0].startswith("org:") and not self._names else place[0]
            self._differences.append(f"{scope}, {place[1]}: {what}")

    def books(self, start: int) -> Books:
        found = self.check.finish()
        strangers = self._signers - self._keys if self._keys else set()
        wrong = [f"checkpoints are signed by a key that is none of those given: {key}" for key in sorted(strangers)]
        if self._keys and found.rows and not self._signers:
            wrong.append("no checkpoint of the given key: nothing shows that the chain was not rewritten")
        return Books(
            rows=found.rows,
            replies=found.replies,
            events=found.events,
            first=found.first,
            last=found.head[0],
            head=found.head[1],
            from_start=start == 0,
            problems=(*wrong, *(found.problems if self._names else map(_nameless, found.problems))),
            problem_count=found.problem_count + len(wrong),
            differences=tuple(self._differences),
            checkpoints=found.checkpoints,
            older_checkpoints=self._older,
            signers=tuple(sorted(self._signers)),
            anchored=bool(self._keys and self._signers) and not strangers,
            signed_row=self._signed[0],
            signed_at=self._signed[1],
            totals=self._totals,
            totals_since=self._totals_since,
            recent=self._seen.replies(complete=self._oldest < self._since),
        )


def _link(row: Mapping[str, Any], payload: bytes) -> Link:
    claims = {"ts": row["ts"]}
    if row["kind"] == "reply":
        claims |= {"request_id": row["request_id"], "account": row["account"]}
    else:
        claims |= {"id": row["request_id"], "subject": row["account"]}
    # no salt, no personal fields: their commitments are left to `ledger verify`
    return Link(
        row["seq"], str(row["kind"]), str(row["prev_hash"]), str(row["hash"]), payload, claims, salt=None, personal={}
    )


def _nameless(problem: str) -> str:
    what, beside, _ = problem.partition(" beside the chain is ")
    return f"{what} beside the chain is not what the chain says" if beside else problem


def _equal(stored: float, summed: int) -> bool:
    # beyond 2^63 pico-dollars (9.2 million dollars) SQLite adds in floating point
    return stored == summed or (summed >= _EXACT and abs(stored - summed) < summed * 1e-9)


def _shown(amounts: tuple[Any, ...] | None) -> str:
    return "nothing" if amounts is None else "{} requests, {}+{} tokens, {} pico-dollars".format(*amounts)
