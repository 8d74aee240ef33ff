"""A rate as GCRA, in its leaky-bucket form (ITU-T I.371: level and last conformance time instead of one arrival time).

The level is kept in units × milliseconds of the period, so that all of it is whole numbers: a minute of a limit of N
drains N per millisecond, and what a request takes weighs 60,000 times its amount. The Lua script does the same.

A reservation is corrected when its request ends. Taking the difference from the level would be wrong: part of it has
drained in the meantime, and draining twice lets more through than the rate (a caller who reserves much and uses little
gets twice the rate). What may be taken is the lowest level since the reservation was made, if that is less: then the
level is what it would be had the true amount been known from the start. `lows` keeps those minima, as suffix minima:
each entry is (last reservation it counts for, lowest level since, open reservations it counts for), rising in both.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MOST_LOWS", "PERIOD_MS", "Rate"]

PERIOD_MS: Final = 60_000
MOST_LOWS: Final = 16  # beyond it entries are merged: a little less is given back, never more


class Rate:
    """One bucket. level: how full, in units × ms.  at: when that was, ms.  size: the limit it last drained by.
    count: number of the last reservation.

    born: what `count` began with; a bucket made anew does not take an old bucket's reservations for its own.
    fresh: open reservations that no entry of `lows` counts for.
    """

    __slots__ = ("at", "born", "count", "fresh", "level", "lows", "size")

    def __init__(self, now: int) -> None:
        self.level, self.at, self.size, self.fresh = 0, now, 0, 0
        self.born = self.count = now * 1000
        self.lows: list[list[int]] = []

    def level_at(self, now: int, size: int) -> int:
        """The level at `now` (ms) under a limit of `size` a minute. A clock that went back drains nothing."""
        if now <= self.at:
            return self.level
        level = self.level - (now - self.at) * size
        return level if level > 0 else 0

    def drain(self, now: int, size: int) -> None:
        """Bring the level to `level_at`."""
        if now > self.at:
            self.level, self.at = self.level_at(now, size), now
        self.size = size

    def take(self, amount: int) -> int:
        """Add a reservation of `amount` units at the level last drained to; its number."""
        if self.fresh or self.lows:
            self._note()
        self.count += 1
        self.fresh += 1
        self.level += amount * PERIOD_MS
        return self.count

    def close(self, number: int, excess: int) -> None:
        """Close a reservation that took `excess` units less than it had reserved (negative: more). Drain first."""
        if not self.born < number <= self.count:
            return
        index, many = 0, len(self.lows)
        while index < many and self.lows[index][0] < number:
            index += 1
        entry = self.lows[index] if index < many else None
        lowest = self.level if entry is None else min(entry[1], self.level)
        back = min(max(excess, 0) * PERIOD_MS, lowest)
        self.level -= back
        if entry is None:
            self.fresh -= 1
        else:
            for low in self.lows[index:]:
                low[1] -= back
            entry[2] -= 1
            while index > 0 and self.lows[index - 1][1] >= entry[1]:
                index -= 1
                entry[2] += self.lows.pop(index)[2]
            if entry[2] == 0:
                del self.lows[index]
        if excess < 0:
            self._note()
            self.level -= excess * PERIOD_MS

    def idle(self, now: int) -> bool:
        """True if forgetting this bucket changes nothing."""
        return not self.fresh and not self.lows and self.level_at(now, self.size) == 0

    def _note(self) -> None:
        """The level is about to rise: it was the lowest, so far, for all that are open."""
        counted = self.fresh
        while self.lows and self.lows[-1][1] >= self.level:
            counted += self.lows.pop()[2]
        if counted:
            self.lows.append([self.count, self.level, counted])
        self.fresh = 0
        if len(self.lows) > MOST_LOWS:
            self._merge()

    def _merge(self) -> None:
        """Join the two neighbours that differ least; the lower level holds for both."""
        lows = self.lows
        index = min(range(len(lows) - 1), key=lambda i: lows[i + 1][1] - lows[i][1])
        lows[index + 1][1] = lows[index][1]
        lows[index + 1][2] += lows.pop(index)[2]
