"""Limits that several processes share, in Redis: one script reserves, one settles; each is one atomic step.

While Redis is away, or has lost what it held and is not yet seeded again, a limit holds (closed: the request is
refused) or lets through (open: it is counted afterwards), as configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any, Self

from spiritsafe.serve._limits._dues import Dues, Undone
from spiritsafe.serve._limits._line import Away
from spiritsafe.serve._limits._model import (
    ALLOWANCE,
    NOTHING,
    RULES,
    Bucket,
    Crossing,
    Denied,
    Granted,
    Lift,
    Limit,
    Ticket,
    Total,
    TotalsSource,
)
from spiritsafe.serve._limits._refusal import away, fits, refusal
from spiritsafe.serve._limits._seeding import Seeding
from spiritsafe.serve._limits._sights import Sights
from spiritsafe.serve._limits._store import REFUSED, TAKEN, UNKNOWN, Store
from spiritsafe.serve._limits._windows import day_number, windows
from spiritsafe.serve._types import Demand, Identity
from spiritsafe.state import Unavailable

__all__ = ["RedisLimiter"]

_log = logging.getLogger("spiritsafe.serve")
_TRIES = 4
_REAP_EVERY_S = 600.0
_REAP_AGE_MS = 86_400_000
_REAP_MOST = 500


class RedisLimiter:
    """Limits in Redis. Made by `open`. One event loop.

    untracked: requests let through while Redis was away.
    """

    def __init__(self, store: Store, totals: TotalsSource, seeding: Seeding, beat_s: float, undone: Undone) -> None:
        self._store, self._totals, self._seeding, self._beat_s = store, totals, seeding, beat_s
        self._sights = Sights(totals, self._lift)
        self._dues = Dues(store, totals, self._sights.see, undone)
        self._wake = asyncio.Event()
        self._whole = asyncio.Event()  # Redis answers, and holds what it should
        self._task: asyncio.Task[None] | None = None
        self._reap_at = 0.0
        self.untracked = 0

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        worker: str,
        totals: TotalsSource,
        flush: Callable[[], Awaitable[object]],
        prefix: str = "",
        timeout_s: float = 0.25,
        grace_s: float = 2.0,
        beat_s: float = 0.25,
        lease_s: float = 7200.0,
        wait_s: float = 10.0,
        undone: Undone = lambda _: None,
        clock: Callable[[], int] | None = None,
    ) -> Self:
        """Connect, and wait up to `wait_s` until limits can be judged; return anyway: `healthy` says whether they can.

        worker: a name for this process.  totals: the ledger's.  flush: makes sure that this process's ledger rows are
        in the database.  grace_s: how long live workers have to tell what they hold after Redis lost it; several times
        `beat_s`, which is how often they look.  timeout_s: silence after which Redis counts as away.
        lease_s: longer than any request; the slots of a dead worker are free after it.
        undone: told the id of a reservation, of which nobody knew whether it was made, once it is not.
        clock: Unix nanoseconds in place of Redis's own clock, for tests.

        Raises:
            BadInput: not a Redis URL.
        """
        made: list[Self] = []
        store = Store(
            url,
            worker=f"{worker}-{secrets.token_hex(4)}",
            prefix=prefix,
            timeout_s=timeout_s,
            lease_ms=int(lease_s * 1000),
            clock=clock,
            on_lost=lambda: made[0]._lost(),
        )
        limiter = cls(store, totals, Seeding(store, totals, flush, grace_s=grace_s), beat_s, undone)
        made.append(limiter)
        limiter._task = asyncio.create_task(limiter._run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await limiter._whole.wait()
        return limiter

    @property
    def generation(self) -> str:
        """The one this process works under, or the last one that it did."""
        return self._store.latest

    @property
    def healthy(self) -> bool:
        """False while Redis is away or not yet seeded."""
        return self._store.generation is not None

    async def reserve(self, buckets: tuple[Bucket, ...], request_id: str) -> Granted | Denied:
        """Take a request's amounts from all buckets, or from none.

        Raises:
            ValueError: this id holds or held a reservation.
        """
        if unseen := [limit for limit, _ in buckets if limit.kind == ALLOWANCE and limit.seen is not self]:
            with contextlib.suppress(Away, Unavailable):  # if it matters, Redis does not know them either
                await self._sights.see(unseen)
        for _ in range(_TRIES):
            if not self.healthy:
                break
            try:
                said = await self._store.reserve(buckets, request_id)
            except Away:
                return self._unjudged(buckets, request_id, asked=True)
            except asyncio.CancelledError:
                self._dues.bury(buckets, request_id)
                raise
            if said[0] == UNKNOWN:
                unknown = [buckets[i - 1].limit for i in said[1:]]
                try:
                    await self._sights.see(unknown)
                except (Away, Unavailable):
                    for limit in unknown:
                        if not limit.open_when_down:
                            return away(limit, buckets, time.time())
                    buckets = tuple([bucket for bucket in buckets if bucket.limit not in unknown])
            elif said[0] == TAKEN:
                raise ValueError(f"request {request_id} holds or held a reservation")
            elif said[0] < 0:
                self._lost()
                break
            elif said[0] == REFUSED:
                windows = [window.decode() for window in said[3::2]]
                return refusal(buckets, said[2::2], windows, said[1] / 1000)
            else:
                return self._granted(buckets, request_id, said)
        return self._unjudged(buckets, request_id)

    async def settle(self, ticket: Ticket, actual: Demand) -> tuple[Crossing, ...]:
        """Replace what was reserved by what was taken; () if that was done before.

        If Redis is away this is remembered and told later; crossings of near limits are then not reported.
        """
        return await self._dues.settle(ticket, actual)

    async def refund(self, ticket: Ticket) -> None:
        """Give everything back. As `settle`."""
        await self._dues.settle(ticket, NOTHING)

    async def recover(self, facts: Mapping[str, Any], actual: Demand) -> None:
        """Settle the ticket of a process that is gone, once. See `Limiter.recover`.

        Raises:
            Unavailable: Redis or the database is away; keep the journal and try again.
        """
        try:
            await self._dues.close_lost(Ticket.from_facts(facts), actual)
        except Away as error:
            raise Unavailable(str(error)) from error

    async def seed(self, totals: Mapping[tuple[str, str], Total]) -> None:
        """Count at least this much as spent, for every allowance of these scopes and windows.

        Raises:
            Unavailable: Redis is away.
        """
        found: list[Lift] = []
        now = windows(day_number(time.time()))
        for (scope, window), total in totals.items():
            subject, _, name = scope.partition(":")
            for rule, facts in RULES.items():
                if facts.window is not None and now[facts.window] == window:
                    found.append((Limit(rule, subject, name, scope, 0, window), Total(*total).of(facts.measure)))
        try:
            await self._lift(found)
        except Away as error:
            raise Unavailable(str(error)) from error

    async def month_usd(self, identity: Identity) -> Decimal:
        """See `Limiter.month_usd`."""
        scope = f"account:{identity.account}"
        month = windows(day_number(time.time()))[1]
        limit = Limit("usd_per_month", "account", identity.account, scope, 0, month)
        with contextlib.suppress(Away):
            key = self._store.bucket_prefix(self._store.latest) + limit.key
            raw = await self._store.ask("GET", key)
            if raw is not None:
                window, settled, _ = raw.decode().split()
                return Decimal(int(settled) if window >= month else 0).scaleb(-9)
        total = (await self._totals({(scope, month)}, ())).totals.get((scope, month), Total())
        return Decimal(total.pico).scaleb(-12)

    async def aclose(self) -> None:
        """Tell Redis what it has not heard, if it answers, and disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(Away, Unavailable, TimeoutError):
            async with asyncio.timeout(2.0):
                await self._dues.catch_up()
        self._store.line.close()

    def _granted(self, buckets: tuple[Bucket, ...], request_id: str, said: list[Any]) -> Granted:
        levels = said[2:]
        shadowed = tuple(
            [bucket.limit.rule for bucket, level in zip(buckets, levels, strict=True) if not fits(bucket, level)]
        )
        ticket = self._dues.open[request_id] = Ticket(request_id, buckets, self._store.latest)
        return Granted(ticket, shadowed, levels, said[1] / 1000)

    def _unjudged(self, buckets: tuple[Bucket, ...], request_id: str, *, asked: bool = False) -> Granted | Denied:
        """What happens while nothing can be judged. asked: the reservation may have been made all the same."""
        for limit, _ in buckets:
            if not limit.open_when_down:
                if asked:
                    self._dues.bury(buckets, request_id)
                return away(limit, buckets, time.time(), undecided=asked)
        self.untracked += 1
        ticket = self._dues.open[request_id] = Ticket(request_id, buckets, self._store.latest, tracked=False)
        return Granted(ticket, (), [], time.time())

    async def _lift(self, found: list[Lift]) -> None:
        await self._store.lift(found)
        for limit, _ in found:
            limit.seen = self

    # Keeping in touch

    def _lost(self) -> None:
        if self._store.generation is not None or self._whole.is_set():
            _log.warning("limits: Redis at %s is away or has lost what it held", self._store.line.name)
        self._store.generation = None
        self._whole.clear()
        self._wake.set()

    async def _run(self) -> None:
        trouble = ""
        while True:
            try:
                await self._look()
                trouble = ""
            except (Away, Unavailable) as error:
                if str(error) != trouble:  # once, not every beat
                    trouble = str(error)
                    _log.warning("limits: %s", error)
            except Exception:
                _log.exception("limits: a fault while keeping in touch with Redis")
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._beat_s):
                    await self._wake.wait()

    async def _look(self) -> None:
        store = self._store
        if not store.line.connected:
            await store.line.connect()
        generation, leader = await store.ask("MGET", store.generation_key, store.leader_key)
        if generation is None:
            if store.generation is not None:
                self._lost()
            if not await self._seeding.attend(leader.decode() if leader else None, self._dues.open.values()):
                return
            generation = await store.ask("GET", store.generation_key)
            if generation is None:
                return
        name = generation.decode()
        if name != store.generation:
            store.generation = store.latest = name
            self._whole.set()
            _log.info("limits: Redis at %s holds them", store.line.name)
        await self._dues.catch_up()
        if time.monotonic() >= self._reap_at:
            self._reap_at = time.monotonic() + _REAP_EVERY_S
            if reaped := await store.reap(max(_REAP_AGE_MS, 2 * store.lease_ms), _REAP_MOST):
                _log.warning("limits: %d reservations of workers that are gone were given back", reaped)
