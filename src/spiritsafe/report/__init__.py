"""A run, a guard or a case as one self-contained HTML file."""

from spiritsafe.report._case import render_case
from spiritsafe.report._guard import GUARD_ROWS, GuardReport, render_guard
from spiritsafe.report._render import render_run

__all__ = ["GUARD_ROWS", "GuardReport", "render_case", "render_guard", "render_run"]
