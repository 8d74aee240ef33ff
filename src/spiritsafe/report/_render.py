"""The page itself: autoescaped, self-contained, and forbidden by its own policy to load anything."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spiritsafe.report._view import view
from spiritsafe.runs import Run, atomic_write

__all__ = ["render_run"]


def render_run(run: Run) -> Path:
    """Write the run's report.html, atomically, from whatever the run holds so far; returns its path.

    Raises:
        BadInput: the manifest is damaged.
    """
    page = _environment().get_template("run.html.j2").render(view(run), css=_stylesheet(), is_markup=_is_markup)
    atomic_write(run.report, page.encode("utf-8", "replace"))
    return run.report


def _is_markup(value: object) -> bool:
    return isinstance(value, Markup)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("spiritsafe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _stylesheet() -> Markup:
    return Markup((Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8"))  # noqa: S704  (our own file)
