"""An account, an API key and a ladder state, as the database has them and as JSON does."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from spiritsafe.config import parse_config
from spiritsafe.serve._config import LimitSet
from spiritsafe.serve._types import LadderState

__all__ = ["Account", "ApiKey", "iso", "ladder_dict", "ladder_state", "limits_text", "plain_limits"]


@dataclass(frozen=True, slots=True)
class Account:
    """Times are Unix seconds. reason, appeal: why it is suspended, and how to object.

    slot: the watermark's account slot, once the ledger has bound it.  limits: its own, on top of the tier's.
    """

    id: str
    name: str
    org: str | None
    tier: str
    created: float
    suspended: bool
    reason: str | None
    appeal: str | None
    terms_version: str | None
    terms_accepted: float | None
    twin_consent: bool
    payment_id: str | None
    limits: LimitSet
    slot: int | None
    cluster: str | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Account:
        return cls(
            id=row["id"],
            name=row["name"],
            org=_shared(row["org"]),
            tier=sys.intern(row["tier"]),
            created=row["created"],
            suspended=row["status"] == "suspended",
            reason=row["reason"],
            appeal=row["appeal"],
            terms_version=_shared(row["terms_version"]),
            terms_accepted=row["terms_accepted"],
            twin_consent=bool(row["twin_consent"]),
            payment_id=row["payment_id"],
            limits=_limits(row["limits"]),
            slot=row["slot"] if row["slot_seq"] is not None else None,
            cluster=_shared(row["cluster"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: times in ISO 8601, only the limits that are given."""
        return {
            "id": self.id,
            "name": self.name,
            "org": self.org,
            "tier": self.tier,
            "created": iso(self.created),
            "status": "suspended" if self.suspended else "active",
            "reason": self.reason,
            "appeal": self.appeal,
            "terms_version": self.terms_version,
            "terms_accepted": iso(self.terms_accepted),
            "twin_consent": self.twin_consent,
            "payment_id": self.payment_id,
            "limits": plain_limits(self.limits),
            "slot": self.slot,
            "cluster": self.cluster,
        }


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key of an account; its secret is nowhere. mac: HMAC-SHA-256 of the whole key."""

    id: str
    account: str
    name: str | None
    scopes: frozenset[str]
    limits: LimitSet
    created: float
    expires: float | None
    revoked: float | None
    mac: bytes = field(repr=False)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> ApiKey:
        return cls(
            id=row["id"],
            account=row["account"],
            name=row["name"],
            scopes=_scopes(row["scopes"]),
            limits=_limits(row["limits"]),
            created=row["created"],
            expires=row["expires"],
            revoked=row["revoked"],
            mac=bytes(row["mac"]),
        )

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"

    def to_dict(self, now: float) -> dict[str, Any]:
        """As JSON has it, without the MAC."""
        return {
            "key_id": self.id,
            "account": self.account,
            "name": self.name,
            "scopes": sorted(self.scopes),
            "limits": plain_limits(self.limits),
            "state": self.state(now),
            "created": iso(self.created),
            "expires": iso(self.expires),
            "revoked": iso(self.revoked),
        }


def ladder_state(row: Mapping[str, Any]) -> LadderState:
    """A row of the table `ladder`, without its features."""
    return LadderState(
        row["subject"], row["step"], bool(row["shadow"]), row["reason"], row["decided_by"], float(row["at"])
    )


def ladder_dict(state: LadderState) -> dict[str, Any]:
    """A ladder state as JSON has it."""
    return {
        "subject": state.subject,
        "step": state.step,
        "shadow": state.shadow,
        "reason": state.reason,
        "decided_by": state.decided_by,
        "at": iso(state.at),
    }


def limits_text(limits: LimitSet) -> str:
    """As the database has them: what is given, a null among it, and nothing else."""
    return json.dumps(limits.model_dump(mode="json", exclude_unset=True), separators=(",", ":"))


def iso(at: float | None) -> str | None:
    """A time as 2026-11-24T10:00:00Z."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def plain_limits(limits: LimitSet) -> dict[str, Any]:
    """As JSON has them: those that are given."""
    given = limits.model_dump(exclude_unset=True)
    return {rule: float(value) if isinstance(value, Decimal) else value for rule, value in given.items()}


def _shared(text: str | None) -> str | None:
    """One object for the many accounts of an organisation, a cluster or a version."""
    return None if text is None else sys.intern(text)


@functools.lru_cache(maxsize=4096)
def _limits(text: str) -> LimitSet:
    return parse_config(json.loads(text), LimitSet, where="limits in the database")


@functools.lru_cache(maxsize=64)
def _scopes(text: str) -> frozenset[str]:
    return frozenset(sys.intern(scope) for scope in json.loads(text))
