"""Configs, identities, clocks and reference models for tests of limits."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from spiritsafe.config import parse_config
from spiritsafe.serve._config import GuardConfig, LimitSet
from spiritsafe.serve._limits import Bucket, Limit, Seed, Total
from spiritsafe.serve._types import Identity

NOON = 1_795_521_600.0  # 2026-11-24 12:00 UTC
DAY = 86400.0
USD = 10**9  # in nano-dollars


def guard_config(**changes: Any) -> GuardConfig:
    """One upstream that serves "m" and "n"; `changes` are top-level keys."""
    price = {"input_per_mtok": 1, "output_per_mtok": 2}
    upstream = {"name": "mock", "base_url": "http://127.0.0.1:9/v1", "models": ["m", "n"], "price": price}
    return parse_config({"upstreams": [upstream], **changes}, GuardConfig, where="test")


def tier_config(**limits: Any) -> GuardConfig:
    """Every account is under these limits."""
    return guard_config(tiers={"default": limits})


def identity(account: str = "acct_1", **changes: Any) -> Identity:
    known: dict[str, Any] = {
        "account": account,
        "name": account,
        "org": None,
        "tier": "default",
        "key_id": f"key_of_{account}",
        "scopes": frozenset({"inference"}),
        "created": NOON - 10 * DAY,
    }
    return Identity(**known | changes)


def limit_set(**limits: Any) -> LimitSet:
    return parse_config(limits, LimitSet, where="test")


@dataclass
class Clock:
    """Time that passes when a test says so, in whole milliseconds. The wall clock may also be set to anything."""

    wall_ms: int = int(NOON * 1000)
    monotonic_ms: int = 1_000_000

    @property
    def now(self) -> float:
        return self.wall_ms / 1000

    def wall(self) -> float:
        return self.wall_ms / 1000

    def wall_ns(self) -> int:
        return self.wall_ms * 1_000_000

    def monotonic_ns(self) -> int:
        return self.monotonic_ms * 1_000_000

    def pass_(self, seconds: float) -> None:
        self.step(seconds)
        self.monotonic_ms += round(seconds * 1000)

    def step(self, seconds: float) -> None:
        """Set the wall clock, forward or back."""
        self.wall_ms += round(seconds * 1000)


@dataclass
class Spent:
    """A ledger's totals, as a `TotalsSource`."""

    totals: dict[tuple[str, str], Total] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)
    asked: list[set[tuple[str, str]]] = field(default_factory=list)
    fails: BaseException | None = None

    async def __call__(self, pairs: Collection[tuple[str, str]], ids: Collection[str]) -> Seed:
        if self.fails is not None:
            raise self.fails
        self.asked.append(set(pairs))
        return Seed({pair: self.totals[pair] for pair in pairs if pair in self.totals}, frozenset(self.rows & set(ids)))


def bucket(rule: Any, amount: int, size: int, *, name: str = "a", window: str = "", **more: Any) -> Bucket:
    """A bucket of the account `name`, without a plan."""
    return Bucket(Limit(rule, "account", name, f"account:{name}", size, window, **more), amount)


def level_of(events: Iterable[tuple[int, int]], now: int, size: int) -> int:
    """The level of a leaky bucket that drains `size` units a minute, from scratch: events are (ms, units), in order."""
    level, at = 0, 0
    for when, amount in events:
        level = max(0, level - (when - at) * size) + amount * 60_000
        at = when
    return max(0, level - (now - at) * size)


@dataclass
class Book:
    """A ledger: rows wait until they are flushed, and what is flushed is what a `TotalsSource` sees."""

    pending: list[tuple[str, tuple[Bucket, ...], int]] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    totals: dict[tuple[str, str], int] = field(default_factory=dict)  # nano
    fails: BaseException | None = None

    def append(self, request_id: str, buckets: tuple[Bucket, ...], nano: int) -> None:
        self.pending.append((request_id, buckets, nano))

    async def flush(self) -> None:
        if self.fails is not None:
            raise self.fails
        for request_id, buckets, nano in self.pending:
            if request_id not in self.rows:
                self.rows[request_id] = nano
                for scope, window in {(b.limit.scope, b.limit.window) for b in buckets if b.limit.window}:
                    self.totals[scope, window] = self.totals.get((scope, window), 0) + nano
        self.pending.clear()

    async def __call__(self, pairs: Collection[tuple[str, str]], ids: Collection[str]) -> Seed:
        if self.fails is not None:
            raise self.fails
        totals = {pair: Total(pico=self.totals[pair] * 1000) for pair in pairs if pair in self.totals}
        return Seed(totals, frozenset(set(ids) & self.rows.keys()))
