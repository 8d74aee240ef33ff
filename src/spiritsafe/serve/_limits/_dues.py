"""Settlements that Redis has yet to hear of, and reservations it may not know.

A settlement is remembered until Redis has confirmed it, and may be told twice: Redis closes a ticket once. A ticket
that this generation never held is a stray. One that was let through while Redis was away is adopted, that is, reserved
unjudged, and then settled like any other. So is one whose worker missed the seeding, unless the ledger has its row by
now: whether this generation began with it nobody can say, so its allowances count at least the ledger's totals.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from spiritsafe.serve._limits._line import Away
from spiritsafe.serve._limits._model import ALLOWANCE, NOTHING, Bucket, Crossing, Limit, Ticket, TotalsSource
from spiritsafe.serve._limits._sights import lifts
from spiritsafe.serve._limits._store import OTHER_GENERATION, UNKNOWN, Store
from spiritsafe.serve._types import Demand
from spiritsafe.state import Unavailable

__all__ = ["Dues", "Undone"]

_TRIES = 5
Undone = Callable[[str], object]


class _Due:
    """A settlement to deliver. bury: the reservation may still be on its way to Redis, and must fail."""

    __slots__ = ("actual", "bury", "busy", "ticket")

    def __init__(self, ticket: Ticket, actual: Demand, bury: bool) -> None:
        self.ticket, self.actual, self.bury, self.busy = ticket, actual, bury, False


class Dues:
    """see: makes sure that allowances exist in Redis, with what the ledger says.  undone: told which reservations were
    buried.

    open: reservations not yet settled in Redis, by id.
    """

    def __init__(
        self,
        store: Store,
        totals: TotalsSource,
        see: Callable[[Sequence[Limit]], Awaitable[None]],
        undone: Undone,
    ) -> None:
        self._store, self._totals, self._see, self._undone = store, totals, see, undone
        self.open: dict[str, Ticket] = {}
        self._due: dict[str, _Due] = {}

    async def settle(self, ticket: Ticket, actual: Demand) -> tuple[Crossing, ...]:
        """Settle a ticket of this process; () if that was done or has to wait."""
        if self.open.get(ticket.id) is not ticket or ticket.id in self._due:
            return ()
        due = self._due[ticket.id] = _Due(ticket, actual, bury=False)
        try:
            return await self._deliver(due)
        except (Away, Unavailable):
            return ()

    def bury(self, buckets: tuple[Bucket, ...], request_id: str) -> None:
        """Nobody waits for this reservation any more, and nobody knows whether it was made."""
        ticket = Ticket(request_id, buckets, self._store.latest)
        self._due[request_id] = _Due(ticket, NOTHING, bury=True)

    async def catch_up(self) -> None:
        """Tell Redis all that it has not heard. Raises `Away` or `Unavailable`; the rest waits."""
        failed: Exception | None = None
        for due in list(self._due.values()):
            try:
                if not due.busy:
                    await self._deliver(due)
            except (Away, Unavailable) as error:
                failed = error
        if failed is not None:
            raise failed
        for ticket in list(self.open.values()):
            if ticket.id not in self._due and self._stray(ticket):
                await self._adopt(ticket)
                ticket.generation, ticket.tracked = self._store.latest, True

    async def close(self, ticket: Ticket, actual: Demand, *, bury: bool = False) -> tuple[Crossing, ...]:
        """Close a ticket of whichever process, in whichever state it is. Raises `Away` or `Unavailable`."""
        for _ in range(_TRIES):
            said = await self._store.settle(ticket.buckets, ticket.id, actual, bury=bury)
            if said[0] == 1:
                return tuple(
                    ticket.buckets[i - 1].limit.crossed(used) for i, used in zip(said[1::2], said[2::2], strict=True)
                )
            if said[0] == 2 or bury or not self._stray(ticket):
                return ()
            if ticket.generation != self._store.generation:
                limits = [bucket.limit for bucket in ticket.buckets if bucket.limit.kind == ALLOWANCE]
                seed = await self._totals({(limit.scope, limit.window) for limit in limits}, (ticket.id,))
                if ticket.id in seed.committed:
                    await self._store.lift(lifts(limits, seed), strictly=True)
                    return ()
            await self._adopt(ticket)
        raise Away(f"request {ticket.id} could not be settled; it is tried again")

    async def close_lost(self, ticket: Ticket, actual: Demand) -> None:
        """Close a ticket that a process which is gone may have made: what it asked of Redis may even be done later, if
        Redis hangs. Raises as `close`."""
        await self.close(ticket, actual, bury=not self._stray(ticket))

    async def _deliver(self, due: _Due) -> tuple[Crossing, ...]:
        due.busy = True
        try:
            crossings = await self.close(due.ticket, due.actual, bury=due.bury)
            del self._due[due.ticket.id]
            self.open.pop(due.ticket.id, None)
            if due.bury:
                self._undone(due.ticket.id)
            return crossings
        finally:
            due.busy = False

    async def _adopt(self, ticket: Ticket) -> None:
        """Reserve without judging, if there is no ticket of this id, open or closed."""
        for _ in range(_TRIES):
            said = await self._store.reserve(ticket.buckets, ticket.id, force=True)
            if said[0] == OTHER_GENERATION:
                break
            if said[0] != UNKNOWN:
                return
            await self._see([ticket.buckets[i - 1].limit for i in said[1:]])
        raise Away(f"request {ticket.id} could not be counted; it is tried again")

    def _stray(self, ticket: Ticket) -> bool:
        return not ticket.tracked or ticket.generation != self._store.generation
