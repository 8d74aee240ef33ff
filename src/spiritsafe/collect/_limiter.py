"""How many requests run at once: more while the teacher keeps up, half as many when it says it does not (AIMD)."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Limiter"]

_START = 8
_MOST = 512
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0


class Limiter:
    """Additive increase, multiplicative decrease.

    Until the first sign of trouble every success allows one more (the limit doubles a round trip, as TCP starts);
    after it, a whole window of successes allows one more. The limit grows only while it is used, and only while
    answers take less than `patience` seconds: a teacher that queues silently would otherwise be pushed into timeouts.

    strikes: bursts of trouble since the last success. From the second on, everyone pauses, longer each time.
    highest: most requests that ran together.
    """

    def __init__(self, fixed: int | None, *, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._fixed = fixed
        self._patience = patience
        self._clock = clock
        self._limit = float(fixed or _START)
        self._calm = True
        self._last_cut = float("-inf")
        self._resume_at = float("-inf")
        self.highest = 0
        self.strikes = 0

    @property
    def limit(self) -> int:
        """Requests that may run now, at least one."""
        return max(1, int(self._limit))

    def pause(self) -> float:
        """Seconds until the teacher wants to hear from us again; 0 if it does now."""
        return max(0.0, self._resume_at - self._clock())

    def succeeded(self, latency: float, in_flight: int) -> None:
        """An answer came after `latency` seconds, while `in_flight` requests ran, itself included."""
        self.highest = max(self.highest, in_flight)
        self.strikes = 0
        if self._fixed is None and in_flight >= self.limit and latency < self._patience:
            self._limit = min(_MOST, self._limit + (1.0 if self._calm else 1.0 / self._limit))

    def congested(self, started: float, retry_after: float | None) -> None:
        """A 429, 5xx or timeout of a request sent at `started`. Failures of one burst count once."""
        now = self._clock()
        if retry_after is not None:
            self._resume_at = max(self._resume_at, now + retry_after)
        self._calm = False
        if started >= self._last_cut:
            self._last_cut = now
            self.strikes += 1
            if self.strikes > 1:
                self._resume_at = max(
                    self._resume_at, now + min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self.strikes - 2))
                )
            if self._fixed is None:
                self._limit = max(1.0, self._limit / 2)
