"""The limiter that a guard is configured to use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._limits._memory import MemoryLimiter
from spiritsafe.serve._limits._model import Limiter
from spiritsafe.serve._limits._redis import RedisLimiter
from spiritsafe.serve._limits._totals import totals_source
from spiritsafe.state import Database

__all__ = ["open_limiter"]

_LEASE_S = 600.0  # beyond the longest that any upstream may take


async def open_limiter(
    config: GuardConfig,
    *,
    worker: str,
    db: Database,
    flush: Callable[[], Awaitable[object]],
    undone: Callable[[str], object] = lambda _: None,
) -> Limiter:
    """Limits in memory, or in Redis as `state.limits` says; a Redis that is away is waited for a few seconds at most.

    worker: a name for this process, for people.  db: with the ledger's totals, which every allowance starts from.
    flush: makes sure that the ledger's rows of this process are in the database.  undone: see `RedisLimiter.open`.

    Raises:
        BadInput: `state.limits` is not a Redis URL.
    """
    totals = totals_source(db)
    lease_s = max(upstream.total_s for upstream in config.upstreams) + _LEASE_S
    if config.state.limits == "memory":
        return MemoryLimiter(totals=totals, lease_s=lease_s)
    return await RedisLimiter.open(
        config.state.limits, worker=worker, totals=totals, flush=flush, lease_s=lease_s, undone=undone
    )
