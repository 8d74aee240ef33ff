"""Group commit: writes of many tasks share one transaction and one fsync.

Statements run on the event loop's thread (microseconds each); only the commit, which waits for the disk, runs in a
worker. A thread that ran the statements too would fight the loop for the interpreter lock at every one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spiritsafe.errors import SpiritsafeError

__all__ = ["Ballast", "GroupCommit", "StoreError", "disk_full", "explain"]

_BALLAST_BYTES = 8 << 20

Statement = tuple[str, Sequence[Any]]


class StoreError(SpiritsafeError):
    """The store can no longer be written; everything committed so far is safe."""


def disk_full(path: Path) -> StoreError:
    """The disk is full, as one line."""
    return StoreError(f"{path}: the disk is full; answers committed so far are saved: free space and run again")


def explain(error: Exception, path: Path) -> StoreError:
    """A disk or SQLite error as one line."""
    if "full" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    return StoreError(f"{path}: cannot be written ({error}); answers committed so far are saved: fix it and run again")


class Ballast:
    """A file that is thrown overboard when the disk is full, so that answers already paid for can still be saved."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with contextlib.suppress(OSError), open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, _BALLAST_BYTES)

    def drop(self) -> bool:
        """True if there was anything to drop."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
            return True
        return False


class _Batch:
    __slots__ = ("done", "error", "statements")

    def __init__(self) -> None:
        # By statement: tasks are independent of each other, and one task's statements touch different tables.
        self.statements: defaultdict[str, list[Sequence[Any]]] = defaultdict(list)
        self.done = asyncio.Event()
        self.error: StoreError | None = None


class GroupCommit:
    """Durable writes from one event loop over one connection."""

    def __init__(self, connection: sqlite3.Connection, path: Path, ballast: Ballast) -> None:
        self._connection = connection
        self._path = path
        self._ballast = ballast
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._next = _Batch()
        self._busy: asyncio.Task[None] | None = None
        self.disk_was_full = False

    async def write(self, *statements: Statement) -> None:
        """Return once the statements are on disk.

        Raises:
            StoreError: they are not, and neither is anything else of the same batch.
        """
        batch = self._next
        for sql, values in statements:
            batch.statements[sql].append(values)
        if self._busy is None:
            self._busy = asyncio.get_running_loop().create_task(self._run())
        await batch.done.wait()
        if batch.error is not None:
            raise batch.error

    async def aclose(self) -> None:
        """Wait for what is under way; writes that nobody awaits any more are finished too."""
        while self._busy is not None:
            await asyncio.wait([self._busy])
        self._worker.shutdown()

    async def _run(self) -> None:
        while self._next.statements:
            batch, self._next = self._next, _Batch()
            batch.error = await self._commit(batch)
            batch.done.set()
        self._busy = None

    async def _commit(self, batch: _Batch) -> StoreError | None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                for sql, rows in batch.statements.items():
                    self._connection.executemany(sql, rows)
                await loop.run_in_executor(self._worker, self._connection.commit)
            except (sqlite3.Error, OSError) as error:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.rollback()
                fault = explain(error, self._path)
                if "disk is full" in str(fault):
                    self.disk_was_full = True
                    if self._ballast.drop():
                        continue
                return fault
            else:
                return None
