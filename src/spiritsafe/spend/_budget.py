"""Reserve → settle → refund: a call's worst case is set aside before it leaves, so no interleaving of calls can
take the total over a cap. (Checking first and charging afterwards lets concurrent calls through together.)"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from spiritsafe.errors import Refused
from spiritsafe.spend._price import dollars, pico_dollars

__all__ = ["Budget", "Caps", "OverBudget", "Spend", "Ticket"]

Cap = Literal["usd", "tokens", "requests", "seconds"]


@dataclass(frozen=True, slots=True)
class Spend:
    """An amount: pico-dollars, tokens (in and out together), requests."""

    pico: int = 0
    tokens: int = 0
    requests: int = 0

    def __add__(self, other: Spend) -> Spend:
        return Spend(self.pico + other.pico, self.tokens + other.tokens, self.requests + other.requests)

    def __sub__(self, other: Spend) -> Spend:
        return Spend(self.pico - other.pico, self.tokens - other.tokens, self.requests - other.requests)

    @property
    def usd(self) -> float:
        return dollars(self.pico)


@dataclass(frozen=True, slots=True)
class Caps:
    """Hard limits; None is no limit. `seconds` runs from the budget's creation."""

    usd: float | None = None
    tokens: int | None = None
    requests: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A reservation. It is closed once, by `settle` or `refund`."""

    amount: Spend


class OverBudget(Refused):
    """A cap says no.

    cap: which one.
    final: True if no running reservation, once given back, could make room.
    """

    def __init__(self, cap: Cap, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.cap = cap
        self.final = final


class Budget:
    """Spending under caps. Safe to share between threads and tasks.

    names: what a person changes to raise a cap, e.g. {"usd": "collect.budget_usd"}; used in refusals.
    spent: what earlier sessions spent under the same caps.
    """

    def __init__(
        self,
        caps: Caps,
        *,
        spent: Spend | None = None,
        names: Mapping[Cap, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.caps = caps
        self._limits: tuple[tuple[Cap, int | None], ...] = (
            ("usd", None if caps.usd is None else pico_dollars(caps.usd)),
            ("tokens", caps.tokens),
            ("requests", caps.requests),
        )
        self._names = dict(names or {})
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()
        self._open: set[Ticket] = set()
        self._spent = spent or Spend()
        self._reserved = Spend()

    @property
    def spent(self) -> Spend:
        """Settled so far."""
        return self._spent

    @property
    def reserved(self) -> Spend:
        """Set aside for calls that are under way."""
        return self._reserved

    def reserve(self, worst: Spend) -> Ticket:
        """Set aside the most a call can take.

        Raises:
            OverBudget: spent + reserved + `worst` would pass a cap, or the time is up. Nothing is set aside.
        """
        with self._lock:
            elapsed = self._clock() - self._started
            if self.caps.seconds is not None and elapsed >= self.caps.seconds:
                raise OverBudget("seconds", self._say("seconds", elapsed, 0, 0, self.caps.seconds), final=True)
            spent, reserved, wanted = _by_cap(self._spent), _by_cap(self._reserved), _by_cap(worst)
            for cap, limit in self._limits:
                if limit is not None and spent[cap] + reserved[cap] + wanted[cap] > limit:
                    message = self._say(cap, spent[cap], reserved[cap], wanted[cap], limit)
                    raise OverBudget(cap, message, final=spent[cap] + wanted[cap] > limit)
            ticket = Ticket(worst)
            self._open.add(ticket)
            self._reserved += worst
            return ticket

    def settle(self, ticket: Ticket, actual: Spend) -> None:
        """Turn a reservation into what was really spent; the rest is free again.

        Spending more than was reserved is recorded as it is: the caps then hold for everything that follows.

        Raises:
            ValueError: the ticket is not open here.
        """
        with self._lock:
            if ticket not in self._open:
                raise ValueError("this reservation was already closed")
            self._open.remove(ticket)
            self._reserved -= ticket.amount
            self._spent += actual

    def refund(self, ticket: Ticket) -> None:
        """Give a reservation back whole: the call never happened.

        Raises:
            ValueError: the ticket is not open here.
        """
        self.settle(ticket, Spend())

    def _say(self, cap: Cap, spent: float, reserved: float, wanted: float, limit: float) -> str:
        def show(amount: float) -> str:
            if cap == "usd":
                return f"${dollars(int(amount)):.6f}".rstrip("0").rstrip(".")
            return f"{amount:.0f} {cap}"

        name = self._names.get(cap, f"the cap on {cap}")
        if limit == 0:
            return f"{name} is 0, so nothing may be spent; raise it to go on"
        if cap == "seconds":
            return f"{name} of {show(limit)} is used up; raise it to go on"
        return (
            f"{name} of {show(limit)} is used up: {show(spent)} spent, {show(reserved)} reserved, "
            f"and the next call may take {show(wanted)}; raise it to go on"
        )


def _by_cap(amount: Spend) -> dict[Cap, int]:
    return {"usd": amount.pico, "tokens": amount.tokens, "requests": amount.requests}
