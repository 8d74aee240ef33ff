"""The command line: one file a command; parses, calls, prints."""

from spiritsafe.cli._main import main

__all__ = ["main"]
