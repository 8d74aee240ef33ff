"""How a new generation begins, once Redis has lost what it held.

One worker leads. In a grace period every live worker, seeing that there is no generation, writes its ledger rows to the
database and tells Redis what it has reserved. Then the leader reads the ledger's totals together with which of those
requests already have a row, at one moment, and a script begins the generation with the sum of both: nothing is
forgotten, nothing counted twice. Until then no limit is judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import cast

from spiritsafe.serve._config import Rule
from spiritsafe.serve._limits._line import Away
from spiritsafe.serve._limits._model import RULES, Ticket, TotalsSource
from spiritsafe.serve._limits._store import Store, Word

__all__ = ["Seeding"]

_LEAD_MS = 15_000  # beyond the grace period; then another may lead
_CHUNK = 200
_TRIES = 50


class Seeding:
    """This worker's part in it. flush: makes sure that the ledger's rows of this process are in the database.

    joined: the round in which this worker has told its reservations.
    """

    def __init__(
        self, store: Store, totals: TotalsSource, flush: Callable[[], Awaitable[object]], *, grace_s: float
    ) -> None:
        self._store, self._totals, self._flush, self._grace_s = store, totals, flush, grace_s
        self.joined: str | None = None

    async def attend(self, leader: str | None, tickets: Iterable[Ticket]) -> bool:
        """Take part in the round that runs, or lead one; True if it was led to its end.

        leader: the round's name, if one runs.

        Raises:
            Away: Redis is.
            Unavailable: the database is; nothing begins without it.
        """
        if leader is not None:
            if self.joined != leader:
                await self._join(leader, list(tickets))
            return False
        leader = secrets.token_hex(8)
        lead_ms = int(self._grace_s * 1000) + _LEAD_MS
        if await self._store.ask("SET", self._store.leader_key, leader, "NX", "PX", lead_ms) is None:
            return False
        try:
            await self._join(leader, list(tickets))
            await asyncio.sleep(self._grace_s)
            await self._begin(leader)
        except BaseException:
            with contextlib.suppress(Away):
                await self._store.ask("DEL", self._store.leader_key)
            raise
        return True

    async def _join(self, round_: str, tickets: list[Ticket]) -> None:
        await self._flush()
        store = self._store
        for start in range(0, max(len(tickets), 1), _CHUNK):
            part = tickets[start : start + _CHUNK]
            last = start + _CHUNK >= len(tickets)
            words: list[Word] = [round_, store.worker, store.now, store.lease_ms, "1" if last else "0"]
            for ticket in part:
                words += (ticket.id, len(ticket.buckets))
                for limit, amount in ticket.buckets:
                    words += (limit.key, limit.kind, amount, limit.window)
            keys = [*self._keys(round_), *(store.ticket_prefix + ticket.id for ticket in part)]
            if (await store.run("join", keys, words))[0] == 0:
                return
        self.joined = round_

    async def _begin(self, round_: str) -> None:
        store, keys = self._store, self._keys(round_)
        generation = f"{round_}:{store.run_id}"
        for _ in range(_TRIES):
            gathered = await store.run("gather", keys, [round_, store.ticket_prefix])
            if gathered[0] == 0:
                return
            ids, windows = _told(gathered[2:])
            pairs = {key: (key.partition(":")[2], window) for key, window in windows.items()}
            seed = await self._totals(set(pairs.values()), ids)
            words: list[Word] = [round_, generation, store.ticket_prefix, store.bucket_prefix(generation)]
            words += (*gathered[:2], len(seed.committed), *seed.committed)
            for key, pair in pairs.items():
                total = seed.totals.get(pair)
                measure = RULES[cast(Rule, key.partition(":")[0])].measure
                words += (key, pair[1], 0 if total is None else total.of(measure))
            if (await store.run("plant", keys, words))[0] != 2:
                return

    def _keys(self, round_: str) -> list[str]:
        store = self._store
        return [store.generation_key, store.leader_key, f"{store.prefix}joined:{round_}", store.open_key]


def _told(tickets: list[list[bytes]]) -> tuple[list[str], dict[str, str]]:
    """Ids, and the newest window of each allowance they are in."""
    ids: list[str] = []
    windows: dict[str, str] = {}
    for ticket in tickets:
        first, *rest = (word.decode() for word in ticket)
        ids.append(first)
        for key, window in zip(rest[::2], rest[1::2], strict=True):
            windows[key] = max(window, windows.get(key, ""))
    return ids, windows
