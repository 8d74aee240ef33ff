"""Who may ask, who may not, who is watched; and how much evidence is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from spiritsafe.serve._config import STEPS, GuardConfig
from spiritsafe.state import Database

__all__ = ["Evidence", "OnLadder", "People", "Suspended", "Unaccepted", "read_evidence", "read_people"]

_SHOWN = 25
_LATEST_ROWS = 20


@dataclass(frozen=True, slots=True)
class OnLadder:
    """kind: account | cluster.  id: an account's, or a cluster's name.  shadow: recorded only.  acts: it has an effect
    now: neither it nor the ladder is in shadow, and the step is turned on.  Names, a cluster's too, and free texts are
    None if they are not wanted."""

    kind: str
    id: str | None
    name: str | None
    step: str
    shadow: bool
    acts: bool
    reason: str | None
    decided_by: str | None
    at: float


@dataclass(frozen=True, slots=True)
class Suspended:
    """since: Unix seconds, None if the account's latest ledger rows do not tell.  reason, appeal: as the customer sees
    them; None if there is none, or names are not wanted."""

    id: str
    name: str | None
    since: float | None
    reason: str | None
    appeal: str | None


@dataclass(frozen=True, slots=True)
class Unaccepted:
    """An active account that has not accepted the terms in force. version: the last it accepted."""

    id: str
    name: str | None
    version: str | None


@dataclass(frozen=True, slots=True)
class People:
    """Of each list the first 25, and how many there are.

    tiers: accounts by tier.  ladder: gravest step first.  unaccepted: by name; 0 and empty without terms in the config.
    """

    accounts: int
    tiers: dict[str, int]
    ladder: tuple[OnLadder, ...]
    ladder_count: int
    steps: dict[str, int]
    unaccepted: tuple[Unaccepted, ...]
    unaccepted_count: int
    suspended: tuple[Suspended, ...]
    suspended_count: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """twin_pairs: kept now; the first goes at `twins_until` (Unix seconds).  canaries: count by state.
    slots: accounts bound to a watermark slot."""

    twin_pairs: int
    twins_until: float | None
    canaries: dict[str, int]
    slots: int


async def read_people(db: Database, config: GuardConfig, *, names: bool = True) -> People:
    """Accounts, ladder, terms and suspensions as they are now. Raises `Unavailable`."""
    counted = await db.fetch("SELECT tier, COUNT(*) AS n FROM accounts GROUP BY tier ORDER BY tier")
    tiers = {row["tier"]: row["n"] for row in counted}
    ladder = await _ladder(db, config, names)
    unaccepted = await _unaccepted(db, config, names)
    rows = await db.fetch("SELECT id, name, reason, appeal FROM accounts WHERE status = 'suspended' ORDER BY name, id")
    suspended = [
        Suspended(
            row["id"],
            row["name"] if names else None,
            await _suspended_at(db, row["id"]),
            row["reason"] if names else None,
            row["appeal"] if names else None,
        )
        for row in rows[:_SHOWN]
    ]
    return People(
        accounts=sum(tiers.values()),
        tiers=tiers,
        ladder=tuple(ladder[:_SHOWN]),
        ladder_count=len(ladder),
        steps=dict(Counter(one.step for one in ladder)),
        unaccepted=tuple(unaccepted[:_SHOWN]),
        unaccepted_count=len(unaccepted),
        suspended=tuple(suspended),
        suspended_count=len(rows),
    )


async def read_evidence(db: Database) -> Evidence:
    """How much is kept for a later proof; nothing of what it says. Raises `Unavailable`."""
    twins = (await db.fetch("SELECT COUNT(*) AS n, MIN(expires) AS until FROM twins"))[0]
    canaries = await db.fetch("SELECT state, COUNT(*) AS n FROM canaries GROUP BY state ORDER BY state")
    slots = await db.fetch("SELECT COUNT(*) AS n FROM accounts WHERE slot_seq IS NOT NULL")
    return Evidence(twins["n"], twins["until"], {row["state"]: row["n"] for row in canaries}, slots[0]["n"])


async def _ladder(db: Database, config: GuardConfig, names: bool) -> list[OnLadder]:
    rows = await db.fetch(
        "SELECT l.subject, l.step, l.shadow, l.reason, l.decided_by, l.at, a.name FROM ladder l"
        " LEFT JOIN accounts a ON l.subject LIKE 'account:%' AND a.id = SUBSTR(l.subject, 9)"
    )
    rows.sort(key=lambda row: (-_gravity(row["step"]), -row["at"], row["subject"]))
    return [_on_ladder(row, config, names) for row in rows]


def _on_ladder(row: Mapping[str, Any], config: GuardConfig, names: bool) -> OnLadder:
    kind, _, name = row["subject"].partition(":")
    shadow = bool(row["shadow"])
    return OnLadder(
        kind=kind,
        id=name if names or kind == "account" else None,
        name=row["name"] if names else None,
        step=row["step"],
        shadow=shadow,
        acts=not shadow and not config.ladder.shadow and row["step"] in config.ladder.steps,
        reason=row["reason"] if names else None,
        decided_by=row["decided_by"] if names else None,
        at=row["at"],
    )


def _gravity(step: str) -> int:
    return STEPS.index(step) if step in STEPS else -1


async def _unaccepted(db: Database, config: GuardConfig, names: bool) -> list[Unaccepted]:
    if config.terms is None:
        return []
    rows = await db.fetch(
        "SELECT id, name, terms_version FROM accounts WHERE status = 'active'"
        " AND (terms_version IS NULL OR terms_version <> $1) ORDER BY name, id",
        config.terms.version,
    )
    return [Unaccepted(row["id"], row["name"] if names else None, row["terms_version"]) for row in rows]


async def _suspended_at(db: Database, account: str) -> float | None:
    """When an account was suspended: among its latest rows, since it can ask for nothing after that."""
    rows = await db.fetch(
        "SELECT kind, ts, payload FROM ledger WHERE account = $1 ORDER BY ts DESC LIMIT $2", account, _LATEST_ROWS
    )
    for row in rows:
        if row["kind"] == "event" and orjson.loads(row["payload"]).get("name") == "suspended":
            return float(row["ts"])
    return None
