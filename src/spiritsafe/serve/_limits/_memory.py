"""Limits of one process: plain dictionaries, no locks, since nothing is awaited between looking and taking."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from spiritsafe.serve._config import Rule
from spiritsafe.serve._limits._allowance import Allowance
from spiritsafe.serve._limits._model import (
    ALLOWANCE,
    NOTHING,
    RATE,
    RULES,
    SCOPES,
    Bucket,
    Crossing,
    Denied,
    Granted,
    Lift,
    Limit,
    Ticket,
    Total,
    TotalsSource,
    amounts_of,
)
from spiritsafe.serve._limits._rate import PERIOD_MS, Rate
from spiritsafe.serve._limits._refusal import away, refusal
from spiritsafe.serve._limits._sights import Sights, lifts
from spiritsafe.serve._limits._windows import day_number, windows
from spiritsafe.serve._types import Demand, Identity
from spiritsafe.state import Unavailable

__all__ = ["MemoryLimiter"]

_SWEEP_MS = 60_000  # how often idle counters are looked for
_IDLE_MS = 600_000  # how long an allowance stays in memory unused
_SWEEP_STEP = 16


class MemoryLimiter:
    """Limits in this process's memory. One event loop, one thread.

    totals: the ledger's; without it only what this process has seen, or was told by `seed`, counts.
    clock: nanoseconds that never go back, for rates.  wall: Unix seconds.
    lease_s: a slot that is not given back by then is free.
    """

    def __init__(
        self,
        *,
        totals: TotalsSource | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], float] = time.time,
        lease_s: float = 7200.0,
    ) -> None:
        self._clock, self._wall, self._lease_ms = clock, wall, int(lease_s * 1000)
        self._entries: dict[str, Any] = {}
        self._open: dict[str, Ticket] = {}
        self._recovered: set[str] = set()
        self._totals = totals
        self._sights = None if totals is None else Sights(totals, self._lift)
        self._sweep: list[str] = []
        self._sweep_at = self._now() + _SWEEP_MS
        self._thread: int | None = None
        self._generation = secrets.token_hex(8)

    @property
    def generation(self) -> str:
        """This process's memory, and no other's."""
        return self._generation

    @property
    def healthy(self) -> bool:
        """Always: this process's memory is not away."""
        return True

    async def reserve(self, buckets: tuple[Bucket, ...], request_id: str) -> Granted | Denied:
        """Take a request's amounts from all buckets, or from none.

        Raises:
            ValueError: this id holds a reservation already.
        """
        if self._sights is not None and (unseen := self._unseen(buckets)):
            try:
                await self._sights.see(unseen)
            except Unavailable:
                unknown = [limit for limit in unseen if limit.key not in self._entries]
                for limit in unknown:
                    if not limit.open_when_down:
                        return away(limit, buckets, self._wall())
                buckets = tuple([bucket for bucket in buckets if bucket.limit not in unknown])
        return self._reserve(buckets, request_id)

    def _reserve(self, buckets: tuple[Bucket, ...], request_id: str) -> Granted | Denied:
        thread = threading.get_ident()
        assert self._thread is None or self._thread == thread, "a MemoryLimiter belongs to one thread"
        self._thread = thread
        if request_id in self._open:
            raise ValueError(f"request {request_id} holds a reservation already")
        now = self._now()
        entries = self._entries
        levels: list[int] = []
        found: list[Any] = []
        shadowed: list[Rule] = []
        granted = True
        for limit, amount in buckets:
            entry = entries.get(limit.key)
            if entry is None:
                entry = entries[limit.key] = self._new(limit, now)
            if limit.kind == RATE:
                level = entry.level_at(now, limit.size)
                over = level + amount * PERIOD_MS > limit.size * PERIOD_MS
            elif limit.kind == ALLOWANCE:
                level = entry.level_in(limit.window)
                over = level + amount > limit.size
            else:
                level = len(entry)
                over = level + amount > limit.size
                if over:
                    level = _expire(entry, now)
                    over = level + amount > limit.size
            levels.append(level)
            if over and amount:
                if limit.shadow:
                    shadowed.append(limit.rule)
                    # a shadow lets in what it would, so that what it records is what it would do
                    entry = entry if limit.kind == ALLOWANCE else None
                else:
                    granted = False
            found.append(entry)
        if not granted:
            counted = [
                entry.newest(bucket.limit.window) if isinstance(entry, Allowance) else ""
                for entry, bucket in zip(found, buckets, strict=True)
            ]
            return refusal(buckets, levels, counted, self._wall())
        marks: list[Any] = []
        for (limit, amount), entry in zip(buckets, found, strict=True):
            if entry is None:
                marks.append(None)
            elif limit.kind == RATE:
                entry.drain(now, limit.size)
                marks.append(entry.take(amount))
            elif limit.kind == ALLOWANCE:
                marks.append(entry.hold(limit.window, amount, now))
            else:
                entry[request_id] = now + self._lease_ms
                marks.append(0)
        ticket = self._open[request_id] = Ticket(request_id, buckets, self._generation, marks)
        if now >= self._sweep_at or self._sweep:
            self._forget_idle(now)
        return Granted(ticket, tuple(shadowed), levels, self._wall())

    async def settle(self, ticket: Ticket, actual: Demand) -> tuple[Crossing, ...]:
        """Replace what was reserved by what was taken; () if that was done before. See `Limiter.settle`."""
        return self._settle(ticket, actual)

    async def refund(self, ticket: Ticket) -> None:
        """Give everything back."""
        self._settle(ticket, NOTHING)

    def _settle(self, ticket: Ticket, actual: Demand) -> tuple[Crossing, ...]:
        if self._open.pop(ticket.id, None) is None:
            return ()
        now = self._now()
        taken = amounts_of(actual)
        crossings: list[Crossing] = []
        for (limit, amount), mark in zip(ticket.buckets, ticket.marks, strict=True):
            entry = self._entries.get(limit.key)
            if mark is None or entry is None:
                continue
            if limit.kind == RATE:
                entry.drain(now, limit.size)
                entry.close(mark, amount - taken[limit.measure])
            elif limit.kind == ALLOWANCE:
                crossing = entry.settle(limit, mark, amount, taken[limit.measure], now)
                if crossing is not None:
                    crossings.append(crossing)
            else:
                entry.pop(ticket.id, None)
        return tuple(crossings)

    async def recover(self, facts: Mapping[str, Any], actual: Demand) -> None:
        """Count what a process before this one took, unless the ledger's totals have it. Raises `Unavailable`."""
        ticket = Ticket.from_facts(facts)
        if ticket.id in self._open:
            self._settle(self._open[ticket.id], actual)
        elif facts["generation"] != self._generation and ticket.id not in self._recovered:
            limits = [bucket.limit for bucket in ticket.buckets if bucket.limit.kind == ALLOWANCE]
            committed = False
            if self._totals is not None:
                seed = await self._totals({(limit.scope, limit.window) for limit in limits}, (ticket.id,))
                await self._lift(lifts(limits, seed))
                committed = ticket.id in seed.committed
            self._recovered.add(ticket.id)
            taken = amounts_of(actual)
            for limit in limits:
                if not committed:
                    self._allowance(limit).add(limit.window, taken[limit.measure])

    async def seed(self, totals: Mapping[tuple[str, str], Total]) -> None:
        """Count at least this much as spent, for every allowance of these scopes and windows. See `Limiter.seed`."""
        now = windows(day_number(self._wall()))
        for (scope, window), total in totals.items():
            subject, _, name = scope.partition(":")
            for rule, facts in RULES.items():
                if facts.window is not None and now[facts.window] == window:
                    limit = Limit(rule, subject, name, scope, 0, window)
                    await self._lift([(limit, Total(*total).of(facts.measure))])

    async def month_usd(self, identity: Identity) -> Decimal:
        """See `Limiter.month_usd`."""
        scope = f"account:{identity.account}"
        month = windows(day_number(self._wall()))[1]
        limit = Limit("usd_per_month", "account", identity.account, scope, 0, month)
        entry = self._entries.get(limit.key)
        if entry is None and self._sights is not None:
            await self._sights.see([limit])
            entry = self._entries.get(limit.key)
        return Decimal(0 if entry is None or entry.window < month else entry.settled).scaleb(-9)

    async def aclose(self) -> None:
        """Nothing to close."""

    def _now(self) -> int:
        return self._clock() // 1_000_000

    def _new(self, limit: Limit, now: int) -> Any:
        return Rate(now) if limit.kind == RATE else Allowance(limit.window, now) if limit.kind == ALLOWANCE else {}

    def _unseen(self, buckets: Sequence[Bucket]) -> list[Limit]:
        """Allowances not yet compared with the ledger."""
        entries = self._entries
        return [
            limit
            for limit, _ in buckets
            if limit.kind == ALLOWANCE and (limit.seen is not self or limit.key not in entries)
        ]

    async def _lift(self, found: list[Lift]) -> None:
        for limit, least in found:
            self._allowance(limit).lift(limit.window, least)
            limit.seen = self

    def _allowance(self, limit: Limit) -> Allowance:
        entry = self._entries.get(limit.key)
        if entry is None:
            entry = self._entries[limit.key] = Allowance(limit.window, self._now())
        assert isinstance(entry, Allowance)
        return entry

    def _forget_idle(self, now: int) -> None:
        """Drop a few counters that nobody would miss, so that memory stays flat over many accounts."""
        if not self._sweep:
            self._sweep, self._sweep_at = list(self._entries), now + _SWEEP_MS
        for _ in range(min(_SWEEP_STEP, len(self._sweep))):
            key = self._sweep.pop()
            entry = self._entries.get(key)
            if isinstance(entry, Rate):
                if entry.idle(now):
                    del self._entries[key]
            elif isinstance(entry, Allowance):
                # what the ledger sums up comes back from it when it is needed; the rest is all there is
                known = self._sights is not None and key.split(":", 2)[1] in SCOPES
                if known and not entry.held and entry.touched + _IDLE_MS < now:
                    del self._entries[key]
            elif entry is not None and not entry:
                del self._entries[key]


def _expire(slots: dict[str, int], now: int) -> int:
    """Free the slots of requests that never gave them back; how many are taken."""
    for request_id in [request_id for request_id, deadline in slots.items() if deadline <= now]:
        del slots[request_id]
    return len(slots)
