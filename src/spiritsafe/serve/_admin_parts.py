"""What the admin port works with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._config import GuardConfig, Step
from spiritsafe.serve._secrets import GuardSecrets
from spiritsafe.serve._types import LadderState
from spiritsafe.state import Database

__all__ = ["AdminParts", "LadderControl", "LedgerView"]


class LadderControl(Protocol):
    """The part of the ladder that is used here."""

    async def apply(
        self,
        subject: str,
        step: Step,
        *,
        reason: str,
        decided_by: str,
        features: Mapping[str, Any] | None = None,
        appeal: str = ...,
    ) -> LadderState: ...
    async def states(self) -> Sequence[LadderState]: ...
    async def history(self, subject: str) -> Sequence[Any]: ...


class LedgerView(Protocol):
    """The part of the ledger that is used here."""

    @property
    def backlog(self) -> int: ...
    @property
    def healthy(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What the admin port works with.

    status: says how this process is, as JSON values; shown under that name. Its keys `not_ready` (a list of reasons),
        `refusals` (counts by rule) and `upstreams` (name: is it healthy) are shown on the console.
    """

    accounts: Accounts
    ledger: LedgerView
    db: Database
    config: GuardConfig
    secrets: GuardSecrets
    ladder: LadderControl | None = None
    status: Callable[[], Mapping[str, Any]] | None = None
    clock: Callable[[], float] = time.time
