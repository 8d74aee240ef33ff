"""A counter in the newest window it was used in. Windows never go back: a clock that does must not find an old window
half empty. Reservations of a window that is over have nothing left to correct."""

from __future__ import annotations

from spiritsafe.serve._limits._model import Crossing, Limit

__all__ = ["Allowance"]


class Allowance:
    """settled: taken in truth.  held: reserved, not yet settled.  touched: when it was last used, ms."""

    __slots__ = ("held", "settled", "touched", "window")

    def __init__(self, window: str, now: int) -> None:
        self.window, self.settled, self.held, self.touched = window, 0, 0, now

    def newest(self, window: str) -> str:
        """The window that a request of `window` counts in."""
        return window if window > self.window else self.window

    def level_in(self, window: str) -> int:
        """How much of a request's window is taken."""
        return 0 if window > self.window else self.settled + self.held

    def hold(self, window: str, amount: int, now: int) -> str:
        """Reserve; the window it counts in."""
        self._roll(window)
        self.held += amount
        self.touched = now
        return self.window

    def settle(self, limit: Limit, window: str, held: int, taken: int, now: int) -> Crossing | None:
        """Replace a reservation of `window` by what was taken; tells if that crossed the near limit."""
        self.touched = now
        if window != self.window:
            return None
        self.held -= held
        before = self.settled
        self.settled += taken
        return limit.crossed(self.settled) if before < limit.near <= self.settled else None

    def lift(self, window: str, least: int) -> None:
        """Count at least so much. A request's row may be in the ledger before it is settled here, so what is reserved
        counts too: it must not be there twice."""
        self._roll(window)
        if window == self.window:
            self.settled = max(self.settled, least - self.held)

    def add(self, window: str, taken: int) -> None:
        """Count something that was never reserved here."""
        self._roll(window)
        if window == self.window:
            self.settled += taken

    def _roll(self, window: str) -> None:
        if window > self.window:
            self.window, self.settled, self.held = window, 0, 0
