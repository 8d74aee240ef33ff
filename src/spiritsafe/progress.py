"""How long work reports itself: stages call `Progress.update`, the CLI draws it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Receives progress. Implementations must be cheap: stages call this often."""

    def update(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        """Report `done` of `total` units of `stage`; `note` is a short live figure such as '94 tok/s'."""

    def say(self, message: str) -> None:
        """Report one event worth a line of its own."""


class Silent:
    """Progress that nobody watches."""

    def update(self, stage: str, done: float, total: float | None, note: str = "") -> None: ...

    def say(self, message: str) -> None: ...
