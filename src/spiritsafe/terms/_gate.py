"""The gate: a decision that refuses stops the pipeline, unless the user records why to go on."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from spiritsafe.errors import Refused
from spiritsafe.terms._decide import Decision

__all__ = ["Stage", "TermsRecord", "gate"]

Stage = Literal["collect", "train", "export"]


@dataclass(frozen=True, slots=True)
class TermsRecord:
    """A decision as manifest, model card and report keep it. `accepted` is the override's reason, if one was needed."""

    stage: str
    decision: Decision
    accepted: str | None
    who: str
    when: str

    @property
    def status(self) -> str:
        return self.decision.status

    @property
    def terms_id(self) -> str:
        return self.decision.terms_id

    @property
    def terms_version(self) -> str:
        return self.decision.terms_version

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        override = {"accepted": self.accepted, "who": self.who, "when": self.when}
        return {"stage": self.stage} | self.decision.to_dict() | override


def gate(decision: Decision, *, accept: str | None, stage: str) -> TermsRecord:
    """Let a permitting decision through, and a refusing one only with a reason.

    Raises:
        Refused: the decision does not permit and `accept` is None; or `accept` is blank.
    """
    if accept is not None and not accept.strip():
        raise Refused('--accept-terms needs a reason, which is kept in the records: --accept-terms "why you may go on"')
    if not decision.permits and accept is None:
        raise Refused(
            f'{stage} refused, {decision.reason}; if you may go on all the same, record why: --accept-terms "reason"'
        )
    reason = None if decision.permits or accept is None else accept.strip()
    return TermsRecord(stage, decision, reason, _user(), datetime.now(UTC).isoformat(timespec="seconds"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no login name, as in some containers
        return "unknown"
