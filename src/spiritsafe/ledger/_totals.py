"""Running sums per scope and window, written in the transaction of the rows they count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{ts!r} is no time in Unix seconds") from None


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * 86400, UTC).strftime("%Y-%m-%d")


def spread(rows: Iterable[tuple[Counted, Amounts]]) -> dict[tuple[str, str], list[int]]:
    """Sums by (scope, window) over all rows."""
    together: dict[Counted, list[int]] = {}
    for counted, amounts in rows:
        _add(together, counted, amounts)
    days: dict[tuple[str, str], list[int]] = {}
    for (account, key_id, org, model, day), total in together.items():
        _add(days, (f"account:{account}", day), total)
        _add(days, (f"key:{key_id}", day), total)
        _add(days, (f"model:{model}", day), total)
        _add(days, (f"account_model:{account}:{model}", day), total)  # what a customer is shown
        if org is not None:
            _add(days, (f"org:{org}", day), total)
    sums = dict(days)
    for (scope, day), total in days.items():
        _add(sums, (scope, day[:7]), total)
        _add(sums, (scope, "all"), total)
    return sums


def _add(sums: dict[K, list[int]], key: K, amounts: Sequence[int]) -> None:
    known = sums.get(key)
    if known is None:
        sums[key] = [*amounts]
        return
    known[0] += amounts[0]
    known[1] += amounts[1]
    known[2] += amounts[2]
    known[3] += amounts[3]
