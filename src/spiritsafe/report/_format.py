"""Numbers as people read them. What is missing or not finite is an em dash, never 0 and never 'nan'."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["MISSING", "count", "decimal", "dig", "duration", "mapping", "millions", "number", "percent", "times", "usd"]

MISSING = "—"


def number(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def dig(tree: Any, *keys: str) -> Any:
    """tree[k1][k2]…, or None where a level is missing or is not a mapping."""
    for key in keys:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree


def mapping(tree: Any, *keys: str) -> dict[str, Any]:
    """`dig`, or an empty mapping where what is there is none."""
    found = dig(tree, *keys)
    return found if isinstance(found, dict) else {}


def decimal(value: Any, digits: int = 2) -> str:
    x = number(value)
    return MISSING if x is None else f"{x:.{digits}f}".replace("-", "−")


def count(value: Any) -> str:
    x = number(value)
    return MISSING if x is None else f"{x:,.0f}".replace("-", "−")


def percent(value: Any, digits: int = 0) -> str:
    x = number(value)
    return MISSING if x is None else f"{100 * x:.{digits}f} %".replace("-", "−")


def times(value: Any) -> str:
    x = number(value)
    return MISSING if x is None else f"{x:.2f}×"


def millions(value: Any) -> str:
    """A parameter count: 134.5 M, 7.2 B."""
    x = number(value)
    if x is None:
        return MISSING
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= size:
            return f"{x / size:.1f} {unit}"
    return f"{x:.0f}"


def usd(value: Any) -> str:
    """Dollars; enough digits that a small sum does not read as zero."""
    x = number(value)
    if x is None:
        return MISSING
    digits = 2 if x == 0 or abs(x) >= 1 else min(6, 1 - math.floor(math.log10(abs(x))))
    return f"${x:,.{max(digits, 2)}f}".replace("$-", "−$")


def duration(seconds: Any) -> str:
    x = number(seconds)
    if x is None:
        return MISSING
    if x < 60:
        return f"{x:.0f} s"
    minutes, rest = divmod(round(x), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
