"""SQLite (WAL): one thread owns the connection, so that a slow disk never stops the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from spiritsafe.state._database import Row, Transaction, Unavailable

__all__ = ["SqliteBackend", "connect_sqlite"]

_BUSY_S = 10.0
T = TypeVar("T")


def connect_sqlite(path: str) -> sqlite3.Connection:
    """A connection as this project uses SQLite: WAL, every commit on disk, no implicit transactions."""
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


class SqliteBackend:
    dialect = "sqlite"

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer = _Connection(path)
        # Readers do not wait for writers (WAL), so they get a connection of their own.
        self._reader = _Connection(path)

    @contextlib.asynccontextmanager
    async def transaction(self, *, write: bool) -> AsyncIterator[Transaction]:
        side = self._writer if write else self._reader
        async with side.lock:
            # shielded: a request cancelled at any of these steps, or a full disk, must not leave a transaction open
            try:
                await asyncio.shield(side.run(lambda c: c.execute("BEGIN IMMEDIATE" if write else "BEGIN")))
                yield side
                await asyncio.shield(side.run(lambda c: c.execute("COMMIT")))
            except BaseException:
                await asyncio.shield(side.run(_roll_back))
                raise

    async def aclose(self) -> None:
        for side in (self._reader, self._writer):
            async with side.lock:
                await side.close()


class _Connection:
    """A connection, its thread, and the lock that gives it to one transaction at a time."""

    def __init__(self, path: str) -> None:
        self.lock = asyncio.Lock()
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None

    async def fetch(self, sql: str, *args: Any) -> list[Row]:
        rows = await self.run(lambda c: c.execute(_placeholders(sql), args).fetchall())
        return [dict(row) for row in rows]

    async def execute(self, sql: str, *args: Any) -> int:
        return await self.run(lambda c: c.execute(_placeholders(sql), args).rowcount)

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        await self.run(lambda c: c.executemany(_placeholders(sql), rows))

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, work)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"database {self._path}: {error}; check the disk and who else uses the file") from error

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = connect_sqlite(self._path)
        return work(self._connection)

    async def close(self) -> None:
        if self._connection is not None:
            await self.run(lambda c: c.close())
            self._connection = None
        self._thread.shutdown()


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


@functools.lru_cache(maxsize=512)
def _placeholders(sql: str) -> str:
    return re.sub(r"\$(\d+)", r"?\1", sql)
