"""Every request, every attempt at it and every answer, in one SQLite file: the source of truth of a run.

An attempt is `reserved` (committed before anything is sent), then `settled` (answered and charged), `refunded`
(certainly not charged), or `lost` (perhaps charged: its reservation counts as spent until `reconcile` releases it).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import orjson

from spiritsafe.collect._commit import Ballast, GroupCommit, Statement, StoreError, explain
from spiritsafe.collect._schema import VERSION, connect, damaged, lock
from spiritsafe.records import Request, Usage
from spiritsafe.spend import Spend

__all__ = ["Known", "Paid", "Store", "StoreError", "siblings"]

_SMALL = 1024  # below this, compressing an answer costs more than it saves
_ADD = "INSERT OR IGNORE INTO requests (hash, body) VALUES (?, ?)"

Outcome = Literal["settled", "refunded", "lost"]


@dataclass(frozen=True, slots=True)
class Known:
    """What the store holds on a request. `reason` says what is wrong with the answer, or why there is none."""

    state: Literal["open", "answered", "bad"]
    reason: str | None
    replies: int


@dataclass(frozen=True, slots=True, eq=False)
class Paid:
    """The answer that counts for a request. origin: the run it was copied from, if it was."""

    raw: bytes
    usage: Usage
    pico: int
    seed: int | None
    ended: float
    origin: str | None


class Store:
    """The store of one run. Open it in one process at a time; `write`-ing methods need a running event loop.

    Raises:
        BadInput: the file is damaged, of another program or a later version, or another process collects into it.
        StoreError: it cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = lock(path.with_name(f".{path.name}.lock"))
        try:
            self._connection = connect(path)
        except BaseException:
            os.close(self._lock)
            raise
        self._next_id = self._value("SELECT coalesce(max(id), 0) + 1 FROM attempts")
        self._ballast = Ballast(path.with_name(f".{path.name}.ballast"))
        self._commit: GroupCommit | None = None
        # Whoever held these reservations is gone (we hold the lock), and nobody knows whether they were charged.
        self._now(
            "UPDATE attempts SET state = 'lost', error = 'in flight when the process ended' WHERE state = 'reserved'"
        )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()
        self._ballast.drop()
        os.close(self._lock)

    @property
    def disk_was_full(self) -> bool:
        """True once the reserve of disk space had to be given up: stop asking for more."""
        return self._commit is not None and self._commit.disk_was_full

    # ── reading ──

    def known(self) -> dict[str, Known]:
        """Request hash → what the store holds on it."""
        rows = self._connection.execute("SELECT hash, state, reason, replies FROM requests")
        return {row[0]: Known(*row[1:]) for row in rows}

    def spent(self) -> Spend:
        """Settled, and lost at their reservations."""
        row = self._connection.execute(
            "SELECT coalesce(sum(pico), 0), coalesce(sum(tokens), 0), coalesce(sum(requests), 0) FROM attempts"
        ).fetchone()
        return Spend(*row)

    def spent_by_reason(self) -> dict[str, Spend]:
        """The same, apart: `answered`, `retried` (answers that were not kept), `lost`."""
        rows = self._connection.execute(
            "SELECT CASE WHEN a.state = 'settled' THEN iif(r.attempt = a.id, 'answered', 'retried') ELSE 'lost' END w,"
            " sum(a.pico), sum(a.tokens), sum(a.requests) FROM attempts a LEFT JOIN requests r USING (hash)"
            " WHERE a.state IN ('settled', 'lost', 'reserved') GROUP BY w"
        )
        return {row[0]: Spend(*row[1:]) for row in rows}

    def latency(self) -> float | None:
        """Mean seconds from reservation to answer of the requests this run paid for; None if there are none."""
        row = self._connection.execute(
            "SELECT avg(ended - started) FROM attempts WHERE state = 'settled' AND origin IS NULL"
        ).fetchone()
        return None if row[0] is None else float(row[0])

    def paid(self, request_hash: str) -> Paid | None:
        """The answer to a request, if there is one.

        Raises:
            BadInput: it is damaged.
        """
        row = self._connection.execute(
            "SELECT answer, input, output, cached, reasoning, pico, seed, ended, origin"
            " FROM attempts WHERE id = (SELECT attempt FROM requests WHERE hash = ? AND state = 'answered')",
            (request_hash,),
        ).fetchone()
        if row is None:
            return None
        try:
            raw = _unpack(row[0])
        except (zlib.error, TypeError) as error:
            raise damaged(self.path, f"the answer to {request_hash[:12]}: {error}") from None
        return Paid(raw, Usage(*row[1:5]), *row[5:])

    # ── writing ──

    def add(self, requests: Iterable[tuple[str, Request]]) -> None:
        """Enter requests that are to be asked, by hash; those already there stay as they are."""
        rows = [(request_hash, _body(request)) for request_hash, request in requests]
        self._now(_ADD, rows)

    async def reserve(self, request_hash: str, seed: int | None, worst: Spend) -> int:
        """Commit a reservation; returns the attempt's id. Send only after this returns."""
        attempt, self._next_id = self._next_id, self._next_id + 1
        await self._write(
            (
                "INSERT INTO attempts (id, hash, seed, state, pico, tokens, requests, started)"
                " VALUES (?, ?, ?, 'reserved', ?, ?, ?, ?)",
                (attempt, request_hash, seed, worst.pico, worst.tokens, worst.requests, time.time()),
            )
        )
        return attempt

    async def answered(
        self,
        attempt: int,
        request_hash: str,
        raw: bytes,
        usage: Usage,
        actual: Spend,
        *,
        replies: int,
        reason: str | None,
        then: tuple[str, Request] | None = None,
    ) -> None:
        """Commit an answer and its cost: from now on it is the one that counts. `then`: the request it leads to."""
        await self._write(
            (
                "UPDATE attempts SET state = 'settled', pico = ?, tokens = ?, requests = ?, input = ?, output = ?,"
                " cached = ?, reasoning = ?, ended = ?, error = ?, answer = ? WHERE id = ?",
                (actual.pico, actual.tokens, actual.requests, usage.input_tokens, usage.output_tokens,
                 usage.cached_tokens, usage.reasoning_tokens, time.time(), reason, _pack(raw), attempt),
            ),
            (
                "UPDATE requests SET state = 'answered', reason = ?, attempt = ?, replies = ? WHERE hash = ?",
                (reason, attempt, replies, request_hash),
            ),
            *([] if then is None else [(_ADD, (then[0], _body(then[1])))]),
        )  # fmt: skip

    async def failed(self, attempt: int, outcome: Outcome, actual: Spend, error: str) -> None:
        """Commit an attempt that brought no answer."""
        await self._write(
            (
                "UPDATE attempts SET state = ?, pico = ?, tokens = ?, requests = ?, ended = ?, error = ? WHERE id = ?",
                (outcome, actual.pico, actual.tokens, actual.requests, time.time(), error, attempt),
            )
        )

    async def give_up(self, request_hash: str, reason: str) -> None:
        """Commit that a request has no usable answer, and why."""
        await self._write(
            (
                "UPDATE requests SET state = 'bad', reason = ? WHERE hash = ? AND state != 'answered'",
                (reason, request_hash),
            )
        )

    async def aclose(self) -> None:
        """Finish writes under way. The store stays open for reading."""
        if self._commit is not None:
            await self._commit.aclose()
            self._commit = None

    def release_lost(self) -> tuple[int, Spend]:
        """Count lost attempts as not charged after all; returns how many, and what they had held."""
        row = self._connection.execute(
            "SELECT count(*), coalesce(sum(pico), 0), coalesce(sum(tokens), 0) FROM attempts WHERE state = 'lost'"
        ).fetchone()
        self._now("UPDATE attempts SET state = 'released', pico = 0, tokens = 0 WHERE state = 'lost'")
        return row[0], Spend(row[1], row[2])

    def copy_answers(self, other: Path, wanted: Iterable[str]) -> list[str]:
        """Copy answers to `wanted` from another run's store, at no cost; returns the hashes found there.

        An unusable store (damaged, of another version, unreadable) has nothing to give.
        """
        origin, found = other.parent.name, []
        try:
            with contextlib.closing(sqlite3.connect(f"{other.absolute().as_uri()}?mode=ro", uri=True)) as theirs:
                if theirs.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                    return []
                for request_hash in wanted:
                    row = theirs.execute(
                        "SELECT a.seed, a.input, a.output, a.cached, a.reasoning, a.started, a.ended, a.answer,"
                        " a.origin, r.replies, r.reason FROM requests r JOIN attempts a ON a.id = r.attempt"
                        " WHERE r.hash = ? AND r.state = 'answered'",
                        (request_hash,),
                    ).fetchone()
                    if row is not None:
                        found.append((request_hash, row))
        except sqlite3.Error:
            return []
        attempts, requests = [], []
        for request_hash, (seed, *usage_and_times, answer, older, replies, reason) in found:
            attempts.append((self._next_id, request_hash, seed, *usage_and_times, answer, older or origin))
            requests.append((reason, self._next_id, replies, request_hash))
            self._next_id += 1
        self._now(
            "INSERT INTO attempts (id, hash, seed, state, pico, tokens, requests, input, output, cached, reasoning,"
            " started, ended, answer, origin) VALUES (?, ?, ?, 'settled', 0, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?)",
            attempts,
        )
        self._now(
            "UPDATE requests SET state = 'answered', reason = ?, attempt = ?, replies = ? WHERE hash = ?", requests
        )
        return [request_hash for request_hash, _ in found]

    async def _write(self, *statements: Statement) -> None:
        if self._commit is None:
            self._commit = GroupCommit(self._connection, self.path, self._ballast)
        await self._commit.write(*statements)

    def _now(self, sql: str, rows: Sequence[tuple[object, ...]] | None = None) -> None:
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                if rows is None:
                    self._connection.execute(sql)
                else:
                    self._connection.executemany(sql, rows)
        except sqlite3.Error as error:
            raise explain(error, self.path) from None

    def _value(self, sql: str) -> int:
        return int(self._connection.execute(sql).fetchone()[0])


def _body(request: Request) -> bytes:
    sampling = request.sampling
    return orjson.dumps({"messages": request.prompt.messages, "sampling": sampling, "n": request.n})


def _pack(raw: bytes) -> bytes:
    return raw if len(raw) < _SMALL else zlib.compress(raw, 1)


def _unpack(stored: bytes) -> bytes:
    return zlib.decompress(stored) if stored[:1] == b"x" else stored


def siblings(path: Path) -> Iterator[Path]:
    """Stores of the runs beside the run that `path` belongs to, newest first."""
    others = [p for p in path.absolute().parent.parent.glob(f"*/{path.name}") if p.parent != path.absolute().parent]
    yield from sorted(others, key=lambda p: p.stat().st_mtime, reverse=True)
