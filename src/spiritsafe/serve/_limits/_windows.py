"""The windows that allowances count in: UTC days and months, and all time; named as the ledger's totals name them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

__all__ = ["ALL", "DAY_S", "day_number", "window_end", "windows"]

DAY_S = 86400
ALL = "all"


def day_number(now: float) -> int:
    """UTC days since 1970. now: Unix seconds."""
    return int(now // DAY_S)


@lru_cache(maxsize=16)
def windows(day: int) -> tuple[str, str, str]:
    """The windows of a day (from `day_number`): "2026-11-24", "2026-11", "all". Of one kind, later ones sort higher."""
    text = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%d")
    return text, text[:7], ALL


@lru_cache(maxsize=64)
def window_end(window: str) -> float:
    """When a window is over, Unix seconds; infinite for "all"."""
    if window == ALL:
        return float("inf")
    year, month, *day = map(int, window.split("-"))
    if day:
        end = datetime(year, month, day[0], tzinfo=UTC) + timedelta(days=1)
    else:
        end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return end.timestamp()
