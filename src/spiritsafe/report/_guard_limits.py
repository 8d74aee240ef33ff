"""Whose allowance is nearly used up, by the same rules that the limiter holds: of a day, a month, a lifetime."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from spiritsafe.config import parse_config
from spiritsafe.ledger._totals import day_of
from spiritsafe.serve._account_rows import ladder_state
from spiritsafe.serve._config import GuardConfig, LimitSet
from spiritsafe.serve._limits import Limit, Total, buckets_for
from spiritsafe.serve._types import Identity, LadderState
from spiritsafe.state import Database

__all__ = ["Near", "NearLimits", "read_near_limits"]

_PAGE = 2000
_SHOWN = 30
_NANO = 1e9

_ACCOUNTS = """
SELECT a.id, a.name, a.org, a.tier, a.created, a.status, a.limits, a.cluster,
    t.time_window, t.requests, t.tokens_in, t.tokens_out, t.pico
FROM (SELECT * FROM accounts WHERE id > $1 ORDER BY id LIMIT $2) AS a
LEFT JOIN totals t ON t.scope = 'account:' || a.id AND t.time_window IN ($3, $4, 'all')
ORDER BY a.id
"""
_CLUSTERS = """
SELECT a.cluster AS name, t.time_window, SUM(t.requests) AS requests, SUM(t.tokens_in) AS tokens_in,
    SUM(t.tokens_out) AS tokens_out, SUM(CAST(t.pico AS DOUBLE PRECISION)) AS pico
FROM accounts a JOIN totals t ON t.scope = 'account:' || a.id AND t.time_window IN ($1, $2, 'all')
WHERE a.cluster IS NOT NULL GROUP BY a.cluster, t.time_window
"""
_ONE = "SELECT time_window, requests, tokens_in, tokens_out, pico FROM totals WHERE scope = $1 AND time_window = $2"


@dataclass(frozen=True, slots=True)
class Near:
    """An allowance and how much of it is used, in dollars, tokens or requests as `rule` says.

    subject: account | organisation | cluster | model.  id: an account's, else its name.  name: an account's.
    Names, an organisation's and a cluster's too, are None if they are not wanted.
    shadow: the limit only records what it would refuse.
    """

    subject: str
    id: str | None
    name: str | None
    rule: str
    used: float
    allowed: float
    shadow: bool

    @property
    def share(self) -> float:
        return self.used / self.allowed if self.allowed else float("inf")


@dataclass(frozen=True, slots=True)
class NearLimits:
    """found: fullest first, the first thirty of `count`.  threshold: the share from which one counts.
    unknown_tier: accounts on tiers that the config lacks; nobody limits them, since they may not ask."""

    found: tuple[Near, ...]
    count: int
    threshold: float
    unknown_tier: int


async def read_near_limits(db: Database, config: GuardConfig, now: float, *, names: bool = True) -> NearLimits:
    """All allowances that are used up to the config's `limits.near_limit`, of accounts that ever asked.

    now: Unix seconds; its UTC day and month count.

    Raises:
        Unavailable: the database is away.
        BadInput: an account's limits in the database cannot be read.
    """
    today = day_of(now)
    steps = {row["subject"]: ladder_state(row) for row in await db.fetch("SELECT * FROM ladder")}
    near: list[Near] = []
    shared: dict[str, Limit] = {}  # of organisations, clusters and models: many accounts are under one
    unknown, after = 0, ""
    while rows := await db.fetch(_ACCOUNTS, after, _PAGE, today, today[:7]):
        after = rows[-1]["id"]
        for group in _by_account(rows):
            first = group[0]
            if first["tier"] not in config.tiers:
                unknown += 1
                continue
            used = {row["time_window"]: _total(row) for row in group if row["time_window"] is not None}
            for limit in _allowances(config, _identity(first, steps), "", now):
                if limit.subject != "account":
                    shared[limit.key] = limit
                else:
                    _keep(near, config, limit, used.get(limit.window), first["name"], names=names)
    anyone = Identity("", "", None, "default", "", frozenset(), created=now)
    for model in config.limits.models:
        shared |= {limit.key: limit for limit in _allowances(config, anyone, model, now) if limit.subject == "model"}
    clusters = {}
    if any(limit.subject == "cluster" for limit in shared.values()):
        clusters = {
            (row["name"], row["time_window"]): _total(row) for row in await db.fetch(_CLUSTERS, today, today[:7])
        }
    for limit in shared.values():
        if limit.subject == "cluster":
            total = clusters.get((limit.name, limit.window))
        else:
            found = await db.fetch(_ONE, limit.scope, limit.window)
            total = _total(found[0]) if found else None
        _keep(near, config, limit, total, None, names=names)
    near.sort(key=lambda one: (-one.share, one.subject, one.id or "", one.rule))
    return NearLimits(tuple(near[:_SHOWN]), len(near), config.limits.near_limit, unknown)


def _keep(
    near: list[Near], config: GuardConfig, limit: Limit, total: Total | None, name: str | None, *, names: bool
) -> None:
    used = 0 if total is None else total.of(limit.measure)
    if not used or used < config.limits.near_limit * limit.size:
        return
    unit = _NANO if limit.rule.startswith("usd") else 1
    shown = limit.name if names or limit.subject in ("account", "model") else None
    near.append(
        Near(limit.subject, shown, name if names else None, limit.rule, used / unit, limit.size / unit, limit.shadow)
    )


def _allowances(config: GuardConfig, identity: Identity, model: str, now: float) -> list[Limit]:
    """The limits that count up in a window."""
    limits = buckets_for(config, identity, model, now).limits
    return [limit for limit in limits if limit.window]


def _identity(row: Mapping[str, Any], steps: Mapping[str, LadderState]) -> Identity:
    """As the limiter sees the account, without a key's own limits."""
    cluster = row["cluster"]
    return Identity(
        row["id"],
        row["name"],
        row["org"],
        row["tier"],
        "",
        frozenset(),
        created=row["created"],
        suspended=row["status"] == "suspended",
        limits=_limits(row["limits"]),
        cluster=cluster,
        account_step=steps.get(f"account:{row['id']}"),
        cluster_step=None if cluster is None else steps.get(f"cluster:{cluster}"),
    )


@lru_cache(maxsize=1024)
def _limits(text: str) -> LimitSet:
    return parse_config(json.loads(text), LimitSet, where="limits in the database")


def _by_account(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    groups: list[list[Mapping[str, Any]]] = []
    for row in rows:
        if groups and groups[-1][0]["id"] == row["id"]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _total(row: Mapping[str, Any]) -> Total:
    return Total(int(row["pico"]), int(row["requests"]), int(row["tokens_in"]) + int(row["tokens_out"]))
