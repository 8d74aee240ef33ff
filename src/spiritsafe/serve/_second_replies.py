"""What the operator pays for the second reply of a twin: reserved before it is asked for, settled after.

It is no customer's, so no row of the ledger counts it; the database keeps it in a counter a day. All workers and
replicas share that, and a restart forgets nothing. What is held stands beside it under the request's id, which is in
the crash journal: whoever takes over the journal of a process that died gives it back.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from spiritsafe.records import Usage
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._limits._windows import day_number, windows
from spiritsafe.state import Database, Transaction, Unavailable

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
        self._owed: dict[str, int] = {}  # by request, nano-dollars it came to: not yet written

    async def reserve(self, call: Call) -> bool:
        """Set aside what one more reply may cost; call `settle` afterwards. False, so no twin: the allowance has no
        room, or the database is away."""
        if self._size is None:
            return True
        worst = -(-call.price.worst_case(call.tokens_in, call.applied.max_tokens) // 1000)
        if worst > self._size:
            return False
        counter = f"operator:twins {windows(day_number(self._clock()))[0]}"
        try:
            return await self._take(call.id, counter, worst, self._size)
        except Unavailable as error:
            _log.warning("twins: request %s goes out without one: %s", call.id, error)
            self._owed[call.id] = 0  # it may have been written after all
            return False
        except BaseException:
            self._owed[call.id] = 0
            raise

    async def settle(self, call: Call, second: Usage | None) -> None:
        """second: what the second reply used; None if there was none. Where the database is away, the worst case stays
        taken until it is back."""
        if self._size is None:
            return
        self._owed[call.id] = 0 if second is None else -(-call.price.cost(second) // 1000)
        try:
            await self.write_owed()
        except Unavailable as error:
            _log.warning("twins: request %s is charged at its worst case for now: %s", call.id, error)

    async def write_owed(self) -> None:
        """Settle what could not be settled before. Raises `Unavailable`."""
        owed = dict(self._owed)
        if owed:
            await self._settle(owed.items())
            for request_id in owed:
                self._owed.pop(request_id, None)

    async def give_back(self, request_ids: Iterable[str]) -> None:
        """Free what these requests of a process that died hold: nobody knows what their second reply came to.

        Raises:
            Unavailable: the database is away; nothing was freed.
        """
        await self._settle((request_id, 0) for request_id in request_ids)

    async def aclose(self) -> None:
        with contextlib.suppress(Unavailable):
            await self.write_owed()

    async def _take(self, request_id: str, counter: str, nano: int, size: int) -> bool:
        """Count it if it fits; in one statement, so that no two that fit alone fit together."""
        async with self._db.transaction() as tx:
            taken = await tx.fetch(
                "INSERT INTO counters (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE"
                " SET value = counters.value + $2 WHERE counters.value + $2 <= $3 RETURNING value",
                counter, nano, size,
            )  # fmt: skip
            if taken:
                await tx.execute(
                    "INSERT INTO second_replies (request_id, counter, nano) VALUES ($1, $2, $3)",
                    request_id, counter, nano,
                )  # fmt: skip
        return bool(taken)

    async def _settle(self, came_to: Iterable[tuple[str, int]]) -> None:
        async with self._db.transaction() as tx:
            for request_id, nano in came_to:
                await _settle_one(tx, request_id, nano)


async def _settle_one(tx: Transaction, request_id: str, nano: int) -> None:
    """Exactly once: whoever deletes the row corrects the counter."""
    for held in await tx.fetch("DELETE FROM second_replies WHERE request_id = $1 RETURNING counter, nano", request_id):
        await tx.execute("UPDATE counters SET value = value + $2 WHERE name = $1", held["counter"], nano - held["nano"])
