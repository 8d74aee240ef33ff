"""Sums over a whole ledger in bounded memory: what does not fit goes to a temporary SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from spiritsafe.ledger._totals import ADD_TOTALS, Amounts, Counted, spread

__all__ = ["Sums"]

_MOST = 200_000  # sums held in memory, some 60 MB


class Sums:
    """Sums by (scope, window)."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._held: dict[tuple[str, str], list[int]] = {}
        self._spilt: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._spilt is not None:
            self._spilt.close()

    def add(self, rows: Iterable[tuple[Counted, Amounts]]) -> None:
        for key, amounts in spread(rows).items():
            known = self._held.get(key)
            if known is None:
                self._held[key] = amounts
            else:
                for place, amount in enumerate(amounts):
                    known[place] += amount
        if len(self._held) > self._most:
            self._spill()

    def take(self, key: tuple[str, str]) -> tuple[int, ...] | None:
        """The sum under `key`, which is forgotten; None if there is none."""
        if self._spilt is None:
            held = self._held.pop(key, None)
            return None if held is None else tuple(held)
        if self._held:
            self._spill()
        where = "WHERE scope = ?1 AND time_window = ?2"
        found: tuple[int, ...] | None = self._spilt.execute(
            f"SELECT requests, tokens_in, tokens_out, pico FROM totals {where}",  # noqa: S608
            key,
        ).fetchone()
        self._spilt.execute(f"DELETE FROM totals {where}", key)  # noqa: S608
        return found

    def left(self) -> list[tuple[str, str]]:
        """Keys of a few sums that nobody took."""
        if self._spilt is None:
            return list(self._held)[:3]
        return self._spilt.execute("SELECT scope, time_window FROM totals LIMIT 3").fetchall()

    def _spill(self) -> None:
        if self._spilt is None:
            self._spilt = sqlite3.connect("", isolation_level=None)  # its own file, gone when closed
            self._spilt.execute(
                "CREATE TABLE totals (scope TEXT, time_window TEXT, requests INT, tokens_in INT, tokens_out INT, "
                "pico INT, PRIMARY KEY (scope, time_window)) WITHOUT ROWID"
            )
        self._spilt.execute("BEGIN")
        self._spilt.executemany(ADD_TOTALS.replace("$", "?"), ((*key, *amounts) for key, amounts in self._held.items()))
        self._spilt.execute("COMMIT")
        self._held.clear()
