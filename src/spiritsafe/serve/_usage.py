"""What an account used and has left, from the ledger's totals: for the customer's endpoint and the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from spiritsafe.serve._account_rows import iso
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._limits import Limit, buckets_for
from spiritsafe.serve._limits._model import ALLOWANCE, RULES, Total
from spiritsafe.serve._limits._windows import day_number, window_end, windows
from spiritsafe.serve._types import Identity
from spiritsafe.spend import dollars
from spiritsafe.state import Database

__all__ = ["DAYS", "Spent", "read_spent", "usage_response"]

DAYS = 31
_NANO = 10**9
_SHOWN = ("key", "account", "organisation")  # a linked cluster's are the operator's to see


class Spent(NamedTuple):
    """One scope's total in one window."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    pico: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "input_tokens": self.tokens_in,
            "output_tokens": self.tokens_out,
            "usd": dollars(self.pico),
        }


_NOTHING = Spent()
Totals = Mapping[tuple[str, str], Spent]


async def usage_response(identity: Identity, db: Database, config: GuardConfig, now: float) -> dict[str, Any]:
    """Requests, tokens and dollars by window, day and model, with the caps on them. Days and months are UTC's.

    Settled replies only: what is under way counts once it is done. Models are those served now, and those with a price.
    Caps in shadow are left out: they refuse nothing.

    Raises:
        Unavailable: the database is away.
    """
    account = f"account:{identity.account}"
    today = day_number(now)
    days = [windows(day)[0] for day in range(today - DAYS + 1, today + 1)]
    spans = dict(zip(("today", "month", "lifetime"), windows(today), strict=True))
    models = sorted({*config.models, *(entry.model for entry in config.prices)})
    scopes = {model: f"account_model:{identity.account}:{model}" for model in models}
    limits = [limit for limit in _limits(config, identity, now) if limit.subject in _SHOWN and not limit.shadow]
    spent = await read_spent(db, [account], [*days, *spans.values()])
    spent |= await read_spent(db, {*scopes.values(), *(limit.scope for limit in limits)} - {account}, spans.values())

    def windowed(scope: str) -> dict[str, Any]:
        return {name: spent.get((scope, window), _NOTHING).to_dict() for name, window in spans.items()}

    return {
        "object": "usage",
        "account": identity.account,
        "name": identity.name,
        "tier": identity.tier,
        "at": iso(now),
        **windowed(account),
        "limits": [_limit(limit, spent) for limit in limits],
        "models": [{"model": name, **windowed(scope)} for name, scope in scopes.items()],
        "days": [{"date": day, **spent.get((account, day), _NOTHING).to_dict()} for day in days],
    }


async def read_spent(db: Database, scopes: Iterable[str], spans: Iterable[str]) -> dict[tuple[str, str], Spent]:
    """The totals of every scope in every window, where there are any."""
    first, second = list(scopes), list(spans)
    if not first or not second:
        return {}
    scope_marks = ", ".join(f"${place + 1}" for place in range(len(first)))
    span_marks = ", ".join(f"${place + 1}" for place in range(len(first), len(first) + len(second)))
    query = f"SELECT * FROM totals WHERE scope IN ({scope_marks}) AND time_window IN ({span_marks})"  # noqa: S608
    rows = await db.fetch(query, *first, *second)
    return {
        (row["scope"], row["time_window"]): Spent(
            row["requests"], row["tokens_in"], row["tokens_out"], int(row["pico"])
        )
        for row in rows
    }


def _limits(config: GuardConfig, identity: Identity, now: float) -> Iterable[Limit]:
    """Those that hold whatever the model."""
    return buckets_for(config, identity, "", now).limits if identity.tier in config.tiers else ()


def _limit(limit: Limit, spent: Totals) -> dict[str, Any]:
    """A cap; with what is used and left of it where it counts in a window (the others come back by themselves)."""
    in_usd = limit.rule.startswith("usd")
    shown: dict[str, Any] = {
        "rule": limit.rule,
        "of": limit.subject,
        "limit": limit.size / _NANO if in_usd else limit.size,
        "used": None,
        "left": None,
        "resets": None,
    }
    if limit.kind == ALLOWANCE:
        total = spent.get((limit.scope, limit.window), _NOTHING)
        used = Total(total.pico, total.requests, total.tokens_in + total.tokens_out).of(RULES[limit.rule].measure)
        left = max(0, limit.size - used)
        ends = window_end(limit.window)
        shown |= {
            "used": used / _NANO if in_usd else used,
            "left": left / _NANO if in_usd else left,
            "resets": None if ends == float("inf") else iso(ends),
        }
    if limit.daily:
        shown["grows_usd_per_day"] = limit.daily / _NANO
    return shown
