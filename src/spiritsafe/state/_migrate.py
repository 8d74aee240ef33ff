"""Bringing the schema up to date (Alembic): several processes may start at once, one of them migrates."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.resources
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spiritsafe.errors import BadInput
from spiritsafe.state._database import Unavailable, _shown

__all__ = ["check_schema", "migrate_schema"]

_ADVISORY = 0x5AFE  # the lock that migrating processes share on Postgres


async def migrate_schema(url: str) -> None:
    """Apply the migrations that are missing. Raises as `Database.open`."""
    await _with_connection(url, lambda connection: _upgrade(connection, url))


async def check_schema(url: str) -> None:
    """Raise `BadInput` unless the schema is this version's."""
    await _with_connection(url, lambda connection: _check(connection, url))


async def _with_connection(url: str, work: Callable[[Any], None]) -> None:
    if url.startswith("sqlite:"):
        await asyncio.to_thread(_with_sqlite, url, work)
        return
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    from spiritsafe.state._postgres import connecting

    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1), poolclass=NullPool)
    try:
        with connecting(url):
            async with engine.begin() as connection:
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY})")
                await connection.run_sync(work)
    finally:
        await engine.dispose()


def _with_sqlite(url: str, work: Callable[[Any], None]) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DatabaseError
    from sqlalchemy.pool import NullPool

    path = Path(url.removeprefix("sqlite:///"))
    if not path.parent.is_dir():
        raise BadInput(f"database {url}: there is no folder {path.parent}; create it first")
    engine = create_engine(url, poolclass=NullPool)
    try:
        with _alone(path):
            _write_ahead(path)
            with engine.begin() as connection:
                work(connection)
    except (DatabaseError, sqlite3.DatabaseError) as error:
        reason = str(getattr(error, "orig", None) or error)
        if "not a database" in reason:
            raise BadInput(f"database {url}: that file is no SQLite database; choose another path") from None
        raise Unavailable(f"database {url}: {reason}; check the disk and who owns the file") from error
    finally:
        engine.dispose()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time."""
    try:
        with open(path.with_name(f".{path.name}.migrating"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise BadInput(f"database {path}: cannot be written ({error.strerror}); check the folder") from None


def _write_ahead(path: Path) -> None:
    connection = sqlite3.connect(path, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        path.chmod(0o600)
    finally:
        connection.close()


def _config(connection: Any) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(importlib.resources.files("spiritsafe.state") / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Any, url: str) -> None:
    from alembic import command

    if _ahead(connection, url):
        command.upgrade(_config(connection), "head")


def _check(connection: Any, url: str) -> None:
    if _ahead(connection, url):
        raise BadInput(f"database {_shown(url)}: its schema is older than this version; start `spiritsafe serve` once")


def _ahead(connection: Any, url: str) -> bool:
    """True if this version has migrations that the database lacks."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(_config(connection))
    current = MigrationContext.configure(connection).get_current_revision()
    known = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        raise BadInput(f"database {_shown(url)}: its schema {current} is newer than this version; upgrade spiritsafe")
    return current != script.get_current_head()
