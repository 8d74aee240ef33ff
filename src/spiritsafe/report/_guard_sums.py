"""What the running totals say: by day, by model, by account, and how much of it few accounts take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spiritsafe.ledger._totals import day_of
from spiritsafe.state import Database

__all__ = ["AccountSum", "Amounts", "Concentration", "Sums", "read_sums"]

_TOP = 10
_DAY_S = 86400.0

_AMOUNTS = """
    SUM(requests) AS requests, SUM(tokens_in) AS tokens_in, SUM(tokens_out) AS tokens_out,
    SUM(CAST(pico AS DOUBLE PRECISION)) / 1e12 AS usd
"""  # dollars as floats: a sum of pico-dollars may outgrow 64 bits
_IN_DAYS = "LENGTH(time_window) = 10 AND time_window >= $1 AND time_window <= $2"


@dataclass(frozen=True, slots=True)
class Amounts:
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class AccountSum:
    """name, org: None if the account is gone, or names are not wanted."""

    account: str
    name: str | None
    org: str | None
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Concentration:
    """accounts: how many asked at all.  half: how many took the larger half of the output tokens.
    top: share of the ten largest, 0 to 1; None without output."""

    accounts: int
    half: int
    top: float | None


@dataclass(frozen=True, slots=True)
class Sums:
    """days: of the window, oldest first, with days without requests.  models, accounts: of the window, largest first by
    output tokens; accounts the first ten.  window: the sum of the days.  ever: since the first request."""

    days: tuple[tuple[str, Amounts], ...]
    models: tuple[tuple[str, Amounts], ...]
    accounts: tuple[AccountSum, ...]
    concentration: Concentration
    window: Amounts
    ever: Amounts


async def read_sums(db: Database, now: float, days: int, *, names: bool = True) -> Sums:
    """The sums of the last `days` UTC days, today among them.

    now: Unix seconds.

    Raises:
        Unavailable: the database is away.
    """
    window = [day_of(now - back * _DAY_S) for back in range(days - 1, -1, -1)]
    ends = window[0], window[-1]
    models, accounts = _scopes(db, "model"), _scopes(db, "account")
    async with db.transaction(write=False) as tx:
        # every request counts towards one model, so the models' sums are everyone's
        by_day = await tx.fetch(
            f"SELECT time_window, {_AMOUNTS} FROM totals WHERE {models} AND {_IN_DAYS} GROUP BY time_window",  # noqa: S608
            *ends,
        )
        by_model = await tx.fetch(
            f"SELECT scope, {_AMOUNTS} FROM totals WHERE {models} AND {_IN_DAYS} GROUP BY scope"  # noqa: S608
            " ORDER BY tokens_out DESC, scope",
            *ends,
        )
        ever = await tx.fetch(f"SELECT {_AMOUNTS} FROM totals WHERE {models} AND time_window = 'all'")  # noqa: S608
        per = f"SELECT scope, {_AMOUNTS} FROM totals WHERE {accounts} AND {_IN_DAYS} GROUP BY scope"  # noqa: S608
        top = await tx.fetch(
            f"SELECT top.*, a.name, a.org FROM ({per} ORDER BY tokens_out DESC, scope LIMIT {_TOP}) AS top"  # noqa: S608
            f" LEFT JOIN accounts a ON a.id = SUBSTR(top.scope, 9) ORDER BY top.tokens_out DESC, top.scope",
            *ends,
        )
        spread = await tx.fetch(
            f"WITH per AS ({per}), ranked AS (SELECT tokens_out, SUM(tokens_out) OVER"  # noqa: S608
            " (ORDER BY tokens_out DESC, scope ROWS UNBOUNDED PRECEDING) AS upto, SUM(tokens_out) OVER () AS total"
            " FROM per) SELECT COUNT(*) AS accounts,"
            " SUM(CASE WHEN 2 * (upto - tokens_out) < total THEN 1 ELSE 0 END) AS half FROM ranked",
            *ends,
        )
    found = {row["time_window"]: _amounts(row) for row in by_day}
    whole = _sum(list(found.values()))
    rows = [_account(row, names) for row in top]
    largest = sum(row.amounts.tokens_out for row in rows)
    return Sums(
        days=tuple((day, found.get(day, Amounts())) for day in window),
        models=tuple((row["scope"].removeprefix("model:"), _amounts(row)) for row in by_model),
        accounts=tuple(rows),
        concentration=Concentration(
            int(spread[0]["accounts"]),
            int(spread[0]["half"] or 0),
            largest / whole.tokens_out if whole.tokens_out else None,
        ),
        window=whole,
        ever=_amounts(ever[0]),
    )


def _scopes(db: Database, kind: str) -> str:
    """A condition for the scopes of a kind: one that each database can answer well."""
    if db.dialect == "sqlite":
        return f"scope >= '{kind}:' AND scope < '{kind};'"  # its index orders text by bytes
    return f"scope LIKE '{kind}:%'"


def _amounts(row: Mapping[str, Any]) -> Amounts:
    return Amounts(
        int(row["requests"] or 0), int(row["tokens_in"] or 0), int(row["tokens_out"] or 0), float(row["usd"] or 0)
    )


def _sum(parts: Sequence[Amounts]) -> Amounts:
    return Amounts(
        sum(part.requests for part in parts),
        sum(part.tokens_in for part in parts),
        sum(part.tokens_out for part in parts),
        sum(part.usd for part in parts),
    )


def _account(row: Mapping[str, Any], names: bool) -> AccountSum:
    name, org = (row["name"], row["org"]) if names else (None, None)
    return AccountSum(row["scope"].removeprefix("account:"), name, org, _amounts(row))
