"""What the operator pays for the second reply of a twin: reserved before it is asked for, settled after."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from spiritsafe.records import Usage
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._limits import Bucket, Granted, Limit, Limiter
from spiritsafe.serve._limits._windows import day_number, windows
from spiritsafe.serve._types import Demand

if TYPE_CHECKING:
    from spiritsafe.serve._call import Call

__all__ = ["SecondReplies"]


class SecondReplies:
    """The operator's daily allowance for second replies, `twins.usd_per_day`, at list prices."""

    def __init__(self, config: GuardConfig, limiter: Limiter) -> None:
        usd = config.twins.usd_per_day
        self._size = None if usd is None else int(usd * 10**9)
        self._limiter = limiter
        self._limit: Limit | None = None

    async def reserve(self, call: Call) -> Granted | None:
        """Set aside what one more reply may cost; None if the allowance has no room (then there is no twin)."""
        worst = call.price.worst_case(call.tokens_in, call.applied.max_tokens)
        limit = self._today()
        buckets = () if limit is None else (Bucket(limit, -(-worst // 1000)),)
        outcome = await self._limiter.reserve(buckets, f"{call.id}/twin")
        return outcome if isinstance(outcome, Granted) else None

    async def settle(self, call: Call, granted: Granted, second: Usage | None) -> None:
        """second: what the second reply used; None if there was none."""
        pico = 0 if second is None else call.price.cost(second)
        await self._limiter.settle(granted.ticket, Demand(nano=-(-pico // 1000)))

    def _today(self) -> Limit | None:
        if self._size is None:
            return None
        window = windows(day_number(time.time()))[0]
        if self._limit is None or self._limit.window != window:
            self._limit = Limit("usd_per_day", "operator", "twins", "operator:twins", self._size, window)
        return self._limit
