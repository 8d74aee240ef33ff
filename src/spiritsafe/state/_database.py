"""Opening a database by its URL, and the few verbs that everything above asks it with."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from spiritsafe.errors import BadInput, SpiritsafeError

__all__ = ["Database", "Transaction", "Unavailable"]

Row = Mapping[str, Any]


class Unavailable(SpiritsafeError):
    """The database does not answer, or cannot write; trying again later may help."""


class Transaction(Protocol):
    """Placeholders are `$1`, `$2`… on both databases. Rows read like mappings."""

    async def fetch(self, sql: str, *args: Any) -> list[Row]:
        """All rows."""

    async def execute(self, sql: str, *args: Any) -> int:
        """Run one statement; the number of rows it changed."""

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each of `rows`."""


class Backend(Protocol):
    """What a database driver offers here."""

    dialect: str

    def transaction(self, *, write: bool) -> AbstractAsyncContextManager[Transaction]: ...
    async def aclose(self) -> None: ...


class Database:
    """A migrated database. Safe to share between tasks of one event loop; each process opens its own.

    dialect: "sqlite" or "postgresql".
    """

    def __init__(self, url: str, backend: Backend) -> None:
        self.url, self._backend = url, backend

    @classmethod
    async def open(cls, url: str, *, migrate: bool = True) -> Database:
        """Open "sqlite:///relative.db", "sqlite:////absolute.db" or "postgresql://user@host/name".

        migrate: bring the schema up to date first; otherwise an outdated schema is refused.

        Raises:
            BadInput: not such a URL, the file cannot be used, the schema is newer than this version, or a password is
                wrong.
            Unavailable: nothing answers there.
        """
        from spiritsafe.state._migrate import check_schema, migrate_schema

        if not re.match(r"sqlite:///.|postgresql://", url):
            raise BadInput(f"database {_shown(url)}: write sqlite:///FILE or postgresql://USER@HOST/NAME")
        if migrate:
            await migrate_schema(url)
        else:
            await check_schema(url)
        backend: Backend
        if url.startswith("sqlite:"):
            from spiritsafe.state._sqlite import SqliteBackend

            backend = SqliteBackend(url.removeprefix("sqlite:///"))
        else:
            from spiritsafe.state._postgres import PostgresBackend

            backend = await PostgresBackend.open(url)
        return cls(url, backend)

    @property
    def dialect(self) -> str:
        return self._backend.dialect

    @asynccontextmanager
    async def transaction(self, *, write: bool = True) -> AsyncIterator[Transaction]:
        """All or nothing. A writing transaction holds the write lock from its start (SQLite: BEGIN IMMEDIATE).

        Raises:
            Unavailable: the database is away, locked for too long, read-only or its disk is full. Nothing was written.
        """
        async with self._backend.transaction(write=write) as tx:
            yield tx

    async def fetch(self, sql: str, *args: Any) -> list[Row]:
        """All rows of one query. Raises as `transaction`."""
        async with self.transaction(write=False) as tx:
            return await tx.fetch(sql, *args)

    async def execute(self, sql: str, *args: Any) -> int:
        """One statement in a transaction of its own; the number of rows it changed. Raises as `transaction`."""
        async with self.transaction() as tx:
            return await tx.execute(sql, *args)

    async def aclose(self) -> None:
        await self._backend.aclose()

    async def __aenter__(self) -> Database:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _shown(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"//([^:/@]*):[^@]*@", r"//\1:***@", url)
