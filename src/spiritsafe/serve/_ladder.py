"""The ladder: what is done about a subject, step by step, each with its reason in the ledger before it takes effect.

What a step does is elsewhere (`_steps` says which act); here it is decided, recorded and, for suspension, carried out.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from spiritsafe.errors import BadInput, Refused, SpiritsafeError
from spiritsafe.ledger import Event
from spiritsafe.serve._account_rows import ladder_state
from spiritsafe.serve._account_store import EventLog
from spiritsafe.serve._account_text import APPEAL, one_line
from spiritsafe.serve._config import STEPS, GuardConfig, Step
from spiritsafe.serve._numbers import next_change
from spiritsafe.serve._outbox import put_message
from spiritsafe.serve._steps import gravity
from spiritsafe.serve._types import LadderState
from spiritsafe.state import Database, Unavailable

__all__ = ["WATCH", "Decision", "Ladder", "Suspends"]

WATCH: Final = "watch"  # who decides where no person does
_SUBJECT = re.compile(r"(account|cluster):[^\s:]{1,128}")
_BY_A_PERSON = ("review", "suspend")
_LONGEST_REASON = 2000
_LARGEST_FEATURES = 64 * 1024
_LEDGER_S = 10.0
_log = logging.getLogger(__name__)


class Suspends(Protocol):
    """The part of the accounts that is used here."""

    async def suspend(self, ref: str, *, reason: str, appeal: str, decided_by: str) -> Any: ...
    async def restore(self, ref: str, *, decided_by: str) -> Any: ...
    async def refresh(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of a subject's history: what was decided, and the features that led to it."""

    state: LadderState
    features: dict[str, Any]


class Ladder:
    """Decides, records, suspends. Safe from several tasks; of two processes that decide at once, one is told so."""

    def __init__(
        self,
        db: Database,
        config: GuardConfig,
        accounts: Suspends,
        ledger: EventLog,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._config, self._accounts, self._ledger = db, config.ladder, accounts, ledger
        self._hooks, self._clock = config.webhooks, clock
        self._deciding = asyncio.Lock()

    async def apply(
        self,
        subject: str,
        step: Step,
        *,
        reason: str,
        decided_by: str,
        features: Mapping[str, Any] | None = None,
        appeal: str = APPEAL,
    ) -> LadderState:
        """Put a subject ("account:ID" or "cluster:ID") on a step, up or down, and say why. What is so already is not
        recorded again.

        decided_by: a person's name, or "watch".  features: JSON values that led to it; nothing personal, no prompts:
        they stay in the ledger for good.  appeal: shown to those who are suspended.

        Shadow (the whole ladder, or a step that is not turned on): recorded, and what acted before goes on acting.
        Down from a step that acts is never shadow. Suspending a cluster suspends its accounts of this moment; leaving
        "suspend" restores those it suspended.

        Raises:
            BadInput: no such subject or step, or no reason.
            Refused: "watch" suspends, sends to review, or lowers what a person decided.
            Unavailable: database or ledger cannot be written; what is recorded already takes effect when tried again.
        """
        reason = one_line("reason", reason, _LONGEST_REASON)
        decided_by = one_line("decided_by", decided_by)
        given = _checked_features(features or {})
        if step not in STEPS:
            raise BadInput(f"step {str(step)[:40]!r}: the steps are {', '.join(STEPS)}")
        by_watch = decided_by.casefold() == WATCH
        if by_watch and step in _BY_A_PERSON:
            raise Refused(f"ladder {subject[:140]}: {step} takes a person, not {WATCH}; decide it under your name")
        async with self._deciding:
            return await self._apply(subject, step, reason, decided_by, by_watch, given, appeal)

    async def states(self) -> list[LadderState]:
        """Where each subject stands, by subject. A shadow step recorded over one that acts shows in `history` only."""
        return [ladder_state(row) for row in await self._db.fetch("SELECT * FROM ladder ORDER BY subject")]

    async def history(self, subject: str) -> list[Decision]:
        """Every decision about a subject, oldest first, as the ledger has it."""
        rows = await self._db.fetch(
            "SELECT payload FROM ledger WHERE account = $1 AND kind = 'event' ORDER BY seq", subject
        )
        return [decision for row in rows if (decision := _decision(row["payload"])) is not None]

    async def _apply(
        self,
        subject: str,
        step: Step,
        reason: str,
        decided_by: str,
        by_watch: bool,
        features: dict[str, Any],
        appeal: str,
    ) -> LadderState:
        await self._check(subject)
        row = await self._row(subject)
        before = ladder_state(row) if row else None
        lower = before is not None and not before.shadow and gravity(step) < gravity(before.step)
        if lower and before and by_watch and before.decided_by.casefold() != WATCH:
            raise Refused(f"ladder {subject}: {before.decided_by} decided {before.step}; only a person lowers that")
        shadow = not lower and (self._config.shadow or step not in self._config.steps)
        beside = shadow and before is not None and not before.shadow  # it must not replace what acts
        state = LadderState(subject, step, shadow, reason, decided_by, self._clock())
        history = await self.history(subject)
        if history and _same(history[-1].state, state) and (beside or (before and _same(before, state))):
            return history[-1].state
        await self._record(state, features)
        if step == "suspend" and not shadow:
            for account in await self._members(subject, "active"):
                await self._accounts.suspend(account, reason=reason, appeal=appeal, decided_by=decided_by)
        elif before and before.step == "suspend" and lower:
            for account in await self._suspended_by(before):
                await self._accounts.restore(account, decided_by=decided_by)
        if not beside:
            await self._write(state, features, None if row is None else row["changed"])
        await self._accounts.refresh()
        if not lower and step != "observe":
            await self._flag(state)
        return state

    async def _check(self, subject: str) -> None:
        if not _SUBJECT.fullmatch(subject):
            raise BadInput(f"ladder subject {subject[:140]!r}: write account:ID or cluster:ID")
        kind, _, name = subject.partition(":")
        column = "id" if kind == "account" else "cluster"
        if not await self._db.fetch(f"SELECT 1 FROM accounts WHERE {column} = $1 LIMIT 1", name):  # noqa: S608
            raise BadInput(f"ladder subject {subject}: no account has that {column}; spiritsafe accounts list")

    async def _row(self, subject: str) -> Mapping[str, Any] | None:
        rows = await self._db.fetch("SELECT * FROM ladder WHERE subject = $1", subject)
        return rows[0] if rows else None

    async def _record(self, state: LadderState, features: dict[str, Any]) -> None:
        data = {
            "step": state.step,
            "shadow": state.shadow,
            "reason": state.reason,
            "decided_by": state.decided_by,
            "features": features,
        }
        written = self._ledger.append(Event(ts=state.at, name="ladder_step", subject=state.subject, data=data))
        try:
            await asyncio.wait_for(asyncio.shield(written), _LEDGER_S)
        except TimeoutError:
            raise Unavailable(f"ledger: not written after {_LEDGER_S:.0f} s; {state.subject} stays as it was") from None

    async def _write(self, state: LadderState, features: dict[str, Any], seen: int | None) -> None:
        async with self._db.transaction() as tx:
            change = await next_change(tx)
            now = await tx.fetch("SELECT changed FROM ladder WHERE subject = $1", state.subject)
            if (now[0]["changed"] if now else None) != seen:
                raise SpiritsafeError(f"ladder {state.subject}: somebody else decided just now; look, and decide again")
            await tx.execute(
                "INSERT INTO ladder (subject, step, shadow, reason, decided_by, at, features, changed)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (subject) DO UPDATE SET step = $2, shadow = $3,"
                " reason = $4, decided_by = $5, at = $6, features = $7, changed = $8",
                state.subject,
                state.step,
                int(state.shadow),
                state.reason,
                state.decided_by,
                state.at,
                orjson.dumps(features).decode(),
                change,
            )

    async def _members(self, subject: str, status: str) -> list[str]:
        kind, _, name = subject.partition(":")
        column = "id" if kind == "account" else "cluster"
        rows = await self._db.fetch(
            f"SELECT id FROM accounts WHERE {column} = $1 AND status = $2 ORDER BY id",  # noqa: S608
            name,
            status,
        )
        return [row["id"] for row in rows]

    async def _suspended_by(self, state: LadderState) -> list[str]:
        """The accounts that this step suspended, without those suspended for another reason."""
        rows = await self._db.fetch(
            "SELECT a.id FROM accounts a LEFT JOIN ladder l ON l.subject = 'account:' || a.id AND l.subject <> $1"
            " WHERE (a.id = $2 OR a.cluster = $3) AND a.status = 'suspended' AND a.reason = $4"
            " AND (l.step IS NULL OR l.step <> 'suspend' OR l.shadow = 1) ORDER BY a.id",
            state.subject,
            *(state.subject.removeprefix(kind) if state.subject.startswith(kind) else "" for kind in _KINDS),
            state.reason,
        )
        return [row["id"] for row in rows]

    async def _flag(self, state: LadderState) -> None:
        said = {"step": state.step, "shadow": state.shadow, "reason": state.reason, "decided_by": state.decided_by}
        try:
            async with self._db.transaction() as tx:
                await put_message(tx, self._hooks, "flagged", state.subject, said, at=self._clock())
        except Unavailable as error:  # the step stands, and the ledger tells
            _log.warning("ladder %s: the webhooks were not told: %s", state.subject, error)


_KINDS = ("account:", "cluster:")


def _same(one: LadderState, other: LadderState) -> bool:
    return (one.step, one.shadow, one.reason, one.decided_by) == (
        other.step,
        other.shadow,
        other.reason,
        other.decided_by,
    )


def _checked_features(features: Mapping[str, Any]) -> dict[str, Any]:
    try:
        raw = orjson.dumps(dict(features))
    except TypeError as error:
        raise BadInput(f"features: not JSON ({error}); give numbers, strings, lists and objects") from None
    if len(raw) > _LARGEST_FEATURES:
        raise BadInput(f"features: {len(raw)} bytes; the ledger takes up to {_LARGEST_FEATURES} of them")
    loaded: dict[str, Any] = orjson.loads(raw)
    return loaded


def _decision(payload: str) -> Decision | None:
    event = orjson.loads(payload)
    if event["name"] != "ladder_step":
        return None
    data = event["data"]
    state = LadderState(event["subject"], data["step"], data["shadow"], data["reason"], data["decided_by"], event["ts"])
    return Decision(state, data["features"])
