"""What the admin API accepts, field by field."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from spiritsafe.config import StrictModel
from spiritsafe.serve._account_text import APPEAL, REASON
from spiritsafe.serve._config import LimitSet, Step

__all__ = ["Accept", "Issue", "LadderStep", "ListAccounts", "NewAccount", "Nothing", "Rotate", "Suspend"]


class ListAccounts(StrictModel):
    """after: the name of the last account of the page before."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    after: str | None = None
    search: str | None = None
    suspended: bool | None = None
    tier: str | None = None
    org: str | None = None
    cluster: str | None = None


class NewAccount(StrictModel):
    name: str
    tier: str = "default"
    org: str | None = None
    payment_id: str | None = None
    twin_consent: bool = False
    limits: LimitSet = LimitSet()
    cluster: str | None = None


class Suspend(StrictModel):
    reason: str = REASON
    appeal: str = APPEAL


class Accept(StrictModel):
    version: str


class Issue(StrictModel):
    name: str | None = None
    scopes: tuple[str, ...] = ("inference",)
    expires_days: Annotated[float, Field(gt=0, le=36500)] | None = None
    limits: LimitSet = LimitSet()


class Rotate(StrictModel):
    overlap_hours: Annotated[float, Field(ge=0, le=8760)] = 24.0


class LadderStep(StrictModel):
    """by_watch: decided by the watcher, not by the person whose key this is; it may do less."""

    subject: str
    step: Step
    reason: str
    features: Annotated[dict[str, Any], Field(default_factory=dict)]
    appeal: str = APPEAL
    by_watch: bool = False


class Nothing(StrictModel):
    """A request that says everything by its path."""
