"""Errors a person can act on. The exit code is part of the interface."""

from __future__ import annotations

__all__ = ["BadInput", "Interrupted", "Refused", "SpiritsafeError"]


class SpiritsafeError(Exception):
    """One line: what went wrong, where, and what to do about it."""

    exit_code = 1


class BadInput(SpiritsafeError):
    """The command, a config or a file is unusable as given."""

    exit_code = 2


class Refused(SpiritsafeError):
    """Terms, a budget or a policy says no."""

    exit_code = 3


class Interrupted(SpiritsafeError):
    """Stopped by the user; everything finished so far is saved."""

    exit_code = 130
