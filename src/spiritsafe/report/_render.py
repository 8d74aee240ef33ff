"""The page of a run: autoescaped, self-contained, and forbidden by its own policy to load anything."""

from __future__ import annotations

from pathlib import Path

from spiritsafe.report._page import write_page
from spiritsafe.report._view import view
from spiritsafe.runs import Run

__all__ = ["render_run"]


def render_run(run: Run) -> Path:
    """Write the run's report.html, atomically, from whatever the run holds so far; returns its path.

    Raises:
        BadInput: the manifest is damaged.
    """
    write_page(run.report, "run.html.j2", view(run))
    return run.report
