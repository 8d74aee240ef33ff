"""What the operator pays for the second reply of a twin: reserved before it is asked for, settled after.

It is no customer's, so no row of the ledger counts it; the database keeps it in a counter a day. All workers and
replicas share that, and a restart forgets nothing: what was reserved at a crash stays reserved until the day is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from spiritsafe.records import Usage
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._limits import Bucket, Granted, Limit
from spiritsafe.serve._limits._model import Ticket
from spiritsafe.serve._limits._windows import day_number, windows
from spiritsafe.state import Database, Unavailable

if TYPE_CHECKING:
    from spiritsafe.serve._call import Call

__all__ = ["SecondReplies"]

_log = logging.getLogger(__name__)


class SecondReplies:
    """The operator's daily allowance for second replies, `twins.usd_per_day`, at list prices."""

    def __init__(self, config: GuardConfig, db: Database, *, clock: Callable[[], float] = time.time) -> None:
        usd = config.twins.usd_per_day
        self._size = None if usd is None else int(usd * 10**9)
        self._db, self._clock = db, clock

    async def reserve(self, call: Call) -> Granted | None:
        """Set aside what one more reply may cost. None, so no twin: the allowance has no room, or the database is
        away."""
        now = self._clock()
        if self._size is None:
            return Granted(Ticket(f"{call.id}/twin", (), "database"), (), [], now)
        worst = -(-call.price.worst_case(call.tokens_in, call.applied.max_tokens) // 1000)
        limit = Limit("usd_per_day", "operator", "twins", "operator:twins", self._size, windows(day_number(now))[0])
        try:
            if not await self._take(limit, worst):
                return None
        except Unavailable as error:
            _log.warning("twins: request %s goes out without one: %s", call.id, error)
            return None
        return Granted(Ticket(f"{call.id}/twin", (Bucket(limit, worst),), "database"), (), [], now)

    async def settle(self, call: Call, granted: Granted, second: Usage | None) -> None:
        """second: what the second reply used; None if there was none. Where the database is away, the worst case stays
        taken."""
        nano = 0 if second is None else -(-call.price.cost(second) // 1000)
        for limit, held in granted.ticket.buckets:
            try:
                async with self._db.transaction() as tx:
                    await tx.execute(
                        "UPDATE counters SET value = value + $2 WHERE name = $1", _counter(limit), nano - held
                    )
            except Unavailable as error:
                _log.warning("twins: request %s stays charged at its worst case: %s", call.id, error)

    async def _take(self, limit: Limit, nano: int) -> bool:
        """Count it if it fits; in one statement, so that no two that fit alone fit together."""
        if nano > limit.size:
            return False
        async with self._db.transaction() as tx:
            taken = await tx.fetch(
                "INSERT INTO counters (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE"
                " SET value = counters.value + $2 WHERE counters.value + $2 <= $3 RETURNING value",
                _counter(limit), nano, limit.size,
            )  # fmt: skip
        return bool(taken)


def _counter(limit: Limit) -> str:
    return f"{limit.key} {limit.window}"
