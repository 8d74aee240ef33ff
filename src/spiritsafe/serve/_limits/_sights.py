"""An allowance is compared with the ledger before its first use: what was spent before counts, whoever limits it now.

One query answers all that wait, so that a thousand accounts at midnight do not ask a thousand times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from spiritsafe.errors import SpiritsafeError
from spiritsafe.serve._limits._model import Lift, Limit, Seed, TotalsSource
from spiritsafe.state import Unavailable

__all__ = ["Sights", "lifts"]


def lifts(limits: Sequence[Limit], seed: Seed) -> list[Lift]:
    """What the ledger says of each allowance; 0 where it knows nothing."""
    found: list[Lift] = []
    for limit in limits:
        total = seed.totals.get((limit.scope, limit.window))
        found.append((limit, 0 if total is None else total.of(limit.measure)))
    return found


class _Batch:
    def __init__(self) -> None:
        self.limits: dict[str, Limit] = {}
        self.done: asyncio.Future[SpiritsafeError | None] = asyncio.get_running_loop().create_future()


class Sights:
    """Reads totals for those who wait together. lift: applies what was read; raises `Unavailable` if it cannot."""

    def __init__(self, source: TotalsSource, lift: Callable[[list[Lift]], Awaitable[None]]) -> None:
        self._source, self._lift = source, lift
        self._next: _Batch | None = None
        self._task: asyncio.Task[None] | None = None

    async def see(self, limits: Sequence[Limit]) -> None:
        """Return when all of `limits` have been compared with the ledger.

        Raises:
            Unavailable: they could not be; or what `lift` raises.
        """
        if self._next is None:
            self._next = _Batch()
        batch = self._next
        batch.limits.update((limit.key, limit) for limit in limits)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        failure = await asyncio.shield(batch.done)
        if failure is not None:
            raise failure

    async def _run(self) -> None:
        while self._next is not None:
            batch, self._next = self._next, None
            wanted = list(batch.limits.values())
            try:
                seed = await self._source({(limit.scope, limit.window) for limit in wanted}, ())
                await self._lift(lifts(wanted, seed))
            except SpiritsafeError as error:
                batch.done.set_result(error)
            except BaseException as error:
                batch.done.set_result(Unavailable(f"the ledger's totals: {type(error).__name__}: {error}"))
                raise
            else:
                batch.done.set_result(None)
