"""The store's file: its schema, opening it safely, and keeping other processes out."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from spiritsafe.collect._commit import explain
from spiritsafe.errors import BadInput

__all__ = ["VERSION", "connect", "damaged", "lock"]

VERSION = 1
_APPLICATION = 0x53505254  # "SPRT"
_SCHEMA = f"""
CREATE TABLE requests (
  hash TEXT PRIMARY KEY, body BLOB NOT NULL,
  state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'answered', 'bad')),
  reason TEXT, attempt INTEGER, replies INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE attempts (
  id INTEGER PRIMARY KEY, hash TEXT NOT NULL, seed INTEGER,
  state TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'refunded', 'lost', 'released')),
  pico INTEGER NOT NULL, tokens INTEGER NOT NULL, requests INTEGER NOT NULL,
  input INTEGER NOT NULL DEFAULT 0, output INTEGER NOT NULL DEFAULT 0,
  cached INTEGER NOT NULL DEFAULT 0, reasoning INTEGER NOT NULL DEFAULT 0,
  started REAL NOT NULL, ended REAL, error TEXT, answer BLOB, origin TEXT
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {VERSION};
"""


def connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    except sqlite3.Error as error:
        raise explain(error, path) from None
    try:
        version, application = (
            connection.execute(f"PRAGMA {p}").fetchone()[0] for p in ("user_version", "application_id")
        )
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if tables and application != _APPLICATION:
            raise BadInput(f"{path}: belongs to another program; choose another --run")
        if version > VERSION:
            raise BadInput(f"{path}: written by a later spiritsafe (format {version}); update spiritsafe")
        # FULL: an answer that was paid for survives power loss, not only a killed process.
        connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
        if not tables:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise damaged(path, verdict)
    except sqlite3.DatabaseError as error:
        connection.close()
        operational = isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error)
        raise (explain(error, path) if operational else damaged(path, str(error))) from None
    except BaseException:
        connection.close()
        raise
    return connection


def damaged(path: Path, what: str) -> BadInput:
    return BadInput(
        f"{path}: damaged ({' '.join(what.split())}); restore it from a backup, or move it away to start again "
        "(its answers would be paid for again)"
    )


def lock(path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise explain(error, path) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BadInput(
            f"{path.parent}: another process collects into this run; wait for it, or choose another --run"
        ) from None
    return handle
