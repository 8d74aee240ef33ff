"""The console's pages as HTML: autoescaped templates, one stylesheet, bars drawn as SVG. No script, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["Bar", "bars", "render", "stylesheet"]


class Bar(NamedTuple):
    """One day's bar in a drawing of 310 × 100 units. label: what it says when pointed at."""

    x: int
    y: float
    height: float
    label: str


def bars(days: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Dollars a day as bars; the tallest fills the height, and a day with any spending can be seen."""
    most = max((day["usd"] for day in days), default=0.0)
    drawn = []
    for number, day in enumerate(days):
        height = max(2.0, 100 * day["usd"] / most) if day["usd"] > 0 else 0.0
        label = f"{day['date']}: {usd(day['usd'])}, {day['requests']:,} requests"
        drawn.append(Bar(number * 10, round(100 - height, 2), round(height, 2), label))
    return drawn


def render(template: str, context: Mapping[str, Any]) -> str:
    """A page. Raises `jinja2.UndefinedError` if the template wants what `context` lacks."""
    return _environment().get_template(template).render(context)


@lru_cache(maxsize=1)
def stylesheet() -> bytes:
    return (files("spiritsafe.serve") / "templates" / "console.css").read_bytes()


@lru_cache(maxsize=1)
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("spiritsafe.serve"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "usd": usd,
        "n": lambda value: f"{value:,}",
        "words": lambda text: text.replace("_", " "),
        "when": lambda iso: f"{iso[:10]} {iso[11:16]} UTC",
    }
    return made


def usd(value: float) -> str:
    """$1,234.50; four digits that mean something where it is less than a dollar."""
    if value == 0 or value >= 1:
        return f"${value:,.2f}"
    return f"${value:.4g}" if value >= 0.0001 else "< $0.0001"
