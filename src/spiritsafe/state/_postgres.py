"""Postgres through asyncpg: a small pool, and errors that say whether trying again helps."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from decimal import Decimal
from typing import Any, Self

from spiritsafe.errors import BadInput
from spiritsafe.state._database import Row, Transaction, Unavailable

__all__ = ["PostgresBackend", "connecting"]

_CONNECTIONS = 8
_TIMEOUT_S = 10.0


@contextlib.contextmanager
def connecting(url: str) -> Iterator[None]:
    """Turns a driver's errors into `Unavailable`, or `BadInput` where no waiting helps."""
    import asyncpg

    from spiritsafe.state._database import _shown

    try:
        yield
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise BadInput(f"database {_shown(url)}: {error}; check user and password") from None
    except asyncpg.InvalidCatalogNameError as error:
        raise BadInput(f"database {_shown(url)}: {error}; create it first") from None
    except (
        asyncpg.PostgresConnectionError,
        asyncpg.InsufficientResourcesError,
        asyncpg.OperatorInterventionError,
        asyncpg.InterfaceError,
        asyncpg.ReadOnlySQLTransactionError,
        asyncpg.LockNotAvailableError,
        asyncpg.QueryCanceledError,
        OSError,
        TimeoutError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise Unavailable(f"database {_shown(url)}: {reason}; check that it runs and has room") from error


class PostgresBackend:
    dialect = "postgresql"

    def __init__(self, url: str, pool: Any) -> None:
        self._url, self._pool = url, pool

    @classmethod
    async def open(cls, url: str) -> Self:
        import asyncpg

        with connecting(url):
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=_CONNECTIONS,
                timeout=_TIMEOUT_S,
                command_timeout=_TIMEOUT_S,
                init=_read_integers,
            )
        return cls(url, pool)

    @contextlib.asynccontextmanager
    async def transaction(self, *, write: bool) -> AsyncIterator[Transaction]:
        with connecting(self._url):
            async with self._pool.acquire(timeout=_TIMEOUT_S) as connection, connection.transaction(readonly=not write):
                yield _Transaction(connection)

    async def aclose(self) -> None:
        with contextlib.suppress(TimeoutError, OSError):
            await self._pool.close()


async def _read_integers(connection: Any) -> None:
    """Sums of BIGINT, and sums of money that outgrow it, are NUMERIC here: integers, as on SQLite, unless they have a
    fraction."""
    await connection.set_type_codec("numeric", encoder=str, decoder=_number, schema="pg_catalog", format="text")


def _number(text: str) -> int | Decimal:
    return int(text) if text.lstrip("-").isdigit() else Decimal(text)


class _Transaction:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *args: Any) -> list[Row]:
        return [dict(row) for row in await self._connection.fetch(sql, *args)]

    async def execute(self, sql: str, *args: Any) -> int:
        said = await self._connection.execute(sql, *args)
        last = str(said).rsplit(" ", 1)[-1]
        return int(last) if last.isdigit() else 0

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        await self._connection.executemany(sql, rows)
