"""A run as one self-contained HTML file."""

from spiritsafe.report._render import render_run

__all__ = ["render_run"]
