"""Limits that hold under concurrency: reserve → settle → refund, in one step over all buckets of a request."""

from spiritsafe.serve._limits._headers import rate_headers
from spiritsafe.serve._limits._memory import MemoryLimiter
from spiritsafe.serve._limits._model import (
    Bucket,
    Crossing,
    Denied,
    Granted,
    Limit,
    Limiter,
    Seed,
    Ticket,
    Total,
    TotalsSource,
)
from spiritsafe.serve._limits._open import open_limiter
from spiritsafe.serve._limits._plan import Plan, buckets_for, price_times
from spiritsafe.serve._limits._redis import RedisLimiter
from spiritsafe.serve._limits._totals import totals_source

__all__ = [
    "Bucket",
    "Crossing",
    "Denied",
    "Granted",
    "Limit",
    "Limiter",
    "MemoryLimiter",
    "Plan",
    "RedisLimiter",
    "Seed",
    "Ticket",
    "Total",
    "TotalsSource",
    "buckets_for",
    "open_limiter",
    "price_times",
    "rate_headers",
    "totals_source",
]
