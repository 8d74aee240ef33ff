"""The values that pass between the guard's parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from spiritsafe.serve._config import LimitSet, Step

__all__ = ["Demand", "Identity", "LadderState"]


@dataclass(frozen=True, slots=True)
class LadderState:
    """Where a subject stands on the ladder. shadow: recorded only, changes nothing."""

    subject: str
    step: Step
    shadow: bool
    reason: str
    decided_by: str
    at: float


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Identity:
    """Who asks: one key of one account, as last read. Compared by identity: a changed account is another object, so
    what is worked out per identity may be cached on it.

    slot: the committed account slot of the watermark; None until bound.
    limits, key_limits: the account's and the key's own, on top of the tier's.
    account_step, cluster_step: ladder states, the graver one acts.
    """

    account: str
    name: str
    org: str | None
    tier: str
    key_id: str
    scopes: frozenset[str]
    created: float
    key_expires: float | None = None
    suspended: bool = False
    reason: str | None = None
    appeal: str | None = None
    terms_version: str | None = None
    twin_consent: bool = False
    payment_id: str | None = None
    slot: int | None = None
    cluster: str | None = None
    limits: LimitSet = field(default_factory=LimitSet)
    key_limits: LimitSet = field(default_factory=LimitSet)
    account_step: LadderState | None = None
    cluster_step: LadderState | None = None


class Demand(NamedTuple):
    """What a request takes, at worst when reserved, in truth when settled. nano: nano-dollars, rounded up."""

    tokens_in: int = 0
    tokens_out: int = 0
    nano: int = 0
    requests: int = 1
