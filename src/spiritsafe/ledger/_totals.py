"""Running sums per scope and window, written in the transaction of the rows they count."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple, TypeVar

__all__ = ["ADD_TOTALS", "Amounts", "Counted", "day_of", "spread"]

K = TypeVar("K")
Amounts = tuple[int, int, int, int]  # requests, tokens in, tokens out, pico-dollars

ADD_TOTALS = """
INSERT INTO totals (scope, time_window, requests, tokens_in, tokens_out, pico) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (scope, time_window) DO UPDATE SET
    requests = totals.requests + excluded.requests,
    tokens_in = totals.tokens_in + excluded.tokens_in,
    tokens_out = totals.tokens_out + excluded.tokens_out,
    pico = totals.pico + excluded.pico
"""


class Counted(NamedTuple):
    """Whose totals a row belongs to. day: "2026-11-24" (UTC)."""

    account: str
    key_id: str
    org: str | None
    model: str
    day: str


def day_of(ts: float) -> str:
    """The UTC day of a time.

    Raises:
        ValueError: not a time.
    """
    try:
        return _day(int(ts // 86400))
    except (ValueError, OverflowError):
        raise ValueError(f"{ts!r} is no time in Unix seconds") from None


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * 86400, UTC).strftime("%Y-%m-%d")


def spread(rows: Iterable[tuple[Counted, Amounts]]) -> dict[tuple[str, str], list[int]]:
    """Sums by (scope, window) over all rows."""
    together: dict[Counted, list[int]] = {}
    for counted, amounts in rows:
        _add(together, counted, amounts)
    sums: dict[tuple[str, str], list[int]] = {}
    for counted, total in together.items():
        scopes = [f"account:{counted.account}", f"key:{counted.key_id}", f"model:{counted.model}"]
        if counted.org is not None:
            scopes.append(f"org:{counted.org}")
        for scope in scopes:
            for window in (counted.day, counted.day[:7], "all"):
                _add(sums, (scope, window), total)
    return sums


def _add(sums: dict[K, list[int]], key: K, amounts: Iterable[int]) -> None:
    known = sums.get(key)
    if known is None:
        sums[key] = list(amounts)
        return
    requests, tokens_in, tokens_out, pico = amounts
    known[0] += requests
    known[1] += tokens_in
    known[2] += tokens_out
    known[3] += pico
