"""Canaries: an invented fact under an invented question, one of N answers published, the others sealed.

Whoever repeats the published answer more readily than the sealed ones has met it: `audit` ranks it among them. The
commitment to all of them, and to which is published, is in the ledger before anybody can see the published one.

A canary never alters an answer to anybody's question: it answers one long invented question, word for word, that nobody
asks who has not found it where the operator put it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import orjson

from spiritsafe.errors import BadInput
from spiritsafe.ledger import MOST_VARIANTS, Event
from spiritsafe.ledger._evidence import canary_commit, open_canary, open_published
from spiritsafe.records import Usage
from spiritsafe.serve._account_store import EventLog
from spiritsafe.serve._numbers import next_number
from spiritsafe.state import Database, Unavailable
from spiritsafe.wire import answer, answer_choice

if TYPE_CHECKING:
    from spiritsafe.serve._config import GuardConfig
    from spiritsafe.wire import Ask

__all__ = ["Canaries", "Canary", "CanaryAnswer"]

State = Literal["pending", "active", "retired"]

_SHORTEST_PROMPT, _LONGEST_TEXT = 40, 2000
_LEDGER_S = 10.0
_COUNTER = "canaries"


@dataclass(frozen=True, slots=True)
class Canary:
    """published: index of the variant that may be shown.  state: "pending" until the ledger holds its commitment."""

    id: str
    created: float
    prompt: str
    variants: tuple[str, ...] = field(repr=False)
    published: int = field(repr=False)
    salt: bytes = field(repr=False)
    commit: str
    state: State

    @property
    def answer(self) -> str:
        """The published variant."""
        return self.variants[self.published]

    def opened(self, *, all_variants: bool = False) -> dict[str, Any]:
        """What `verify_canary` checks: the published variant alone, or all of them."""
        opens = open_canary if all_variants else open_published
        return opens(self.id, self.prompt, self.variants, self.published, self.salt)


class CanaryAnswer(NamedTuple):
    """canary: its id.  reply: a `chat.completion` as any other."""

    canary: str
    reply: dict[str, Any]


class Canaries:
    """The canaries in the database, and those that are answered in memory."""

    def __init__(
        self, db: Database, config: GuardConfig, ledger: EventLog, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._db, self._config, self._ledger, self._clock = db, config, ledger, clock
        self._served: dict[str, tuple[str, str]] = {}  # folded prompt: (id, published variant)
        self._longest = 0
        self._seen = 0

    @classmethod
    async def open(
        cls, db: Database, config: GuardConfig, ledger: EventLog, *, clock: Callable[[], float] = time.time
    ) -> Self:
        """Read the canaries. Raises `Unavailable` if the database is away."""
        canaries = cls(db, config, ledger, clock=clock)
        await canaries.refresh()
        return canaries

    async def refresh(self) -> bool:
        """Read what changed since the last time; True if something did. Raises `Unavailable`: nothing changes then."""
        counter = await self._db.fetch("SELECT value FROM counters WHERE name = $1", _COUNTER)
        newest = int(counter[0]["value"]) if counter else 0
        if newest == self._seen:
            return False
        served = dict(self._served)
        for row in await self._db.fetch("SELECT * FROM canaries WHERE changed > $1 ORDER BY changed", self._seen):
            canary = _from_row(row)
            if canary.state == "active" and self._config.canaries.serve:
                served[_folded(canary.prompt)] = (canary.id, canary.answer)
            else:
                served.pop(_folded(canary.prompt), None)
        self._served, self._longest, self._seen = served, max(map(len, served), default=0), newest
        return True

    def answer(self, ask: Ask, *, request_id: str, created: int, count: Callable[[str], int]) -> CanaryAnswer | None:
        """The published answer if `ask` is an active canary's question and nothing else: one user turn, word for word
        (spaces aside), one reply, and nothing asked for that only the model could give (tools, log-probabilities, a
        format).

        created: Unix seconds.  count: tokens of a text, for the usage.
        """
        if not self._served or not _plain(ask):
            return None
        question = _question(ask.body["messages"], 4 * self._longest)
        found = None if question is None else self._served.get(_folded(question))
        if found is None:
            return None
        canary_id, text = found
        stops = ask.body.get("stop") or ()
        if any(stop in text for stop in ([stops] if isinstance(stops, str) else stops)):
            return None
        usage = Usage(sum(count(said) for said in ask.texts()), count(text))
        if ask.max_tokens is not None and usage.output_tokens > ask.max_tokens:
            return None
        choices = [answer_choice(0, text, "stop")]
        reply = answer(request_id=request_id, created=created, model=ask.model, choices=choices, usage=usage)
        return CanaryAnswer(canary_id, reply)

    async def new(self, prompt: str, variants: Sequence[str]) -> Canary:
        """Draw which variant is published and commit to all of them. When this returns, the ledger holds it.

        Raises:
            BadInput: the prompt is too short to be nobody's, or known already; variants are few, alike or too long.
            Unavailable: database or ledger cannot be written; what was kept stays "pending" and is never shown.
        """
        prompt, texts = _checked(prompt, variants)
        published, salt = secrets.randbelow(len(texts)), secrets.token_bytes(32)
        canary_id = "can_" + secrets.token_hex(6)
        commit = canary_commit(canary_id, prompt, texts, published, salt)
        canary = Canary(canary_id, self._clock(), prompt, texts, published, salt, commit, "pending")
        async with self._db.transaction() as tx:
            change = await next_number(tx, _COUNTER)
            for row in await tx.fetch("SELECT id, prompt FROM canaries"):
                if _folded(row["prompt"]) == _folded(prompt):
                    raise BadInput(f"canary prompt: {row['id']} has it; ask something else")
            await tx.execute(
                "INSERT INTO canaries (id, created, prompt, variants, published, salt, canary_commit, state, changed)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, 'pending', $8)",
                canary.id,
                canary.created,
                prompt,
                orjson.dumps(texts).decode(),
                published,
                salt,
                commit,
                change,
            )
        await self._commit(canary)
        return await self._set_state(canary.id, "active")

    async def retire(self, canary_id: str) -> Canary:
        """Answer it no longer. It goes on proving."""
        await self.show(canary_id)
        return await self._set_state(canary_id, "retired")

    async def show(self, canary_id: str) -> Canary:
        """Raises `BadInput` if there is none."""
        rows = await self._db.fetch("SELECT * FROM canaries WHERE id = $1", canary_id)
        if not rows:
            raise BadInput(f"canary {canary_id[:80]!r}: there is none; spiritsafe evidence canary list")
        return _from_row(rows[0])

    async def list(self) -> list[Canary]:
        """All of them, oldest first."""
        return [_from_row(row) for row in await self._db.fetch("SELECT * FROM canaries ORDER BY created, id")]

    async def _commit(self, canary: Canary) -> None:
        data = {"canary": canary.id, "commit": canary.commit, "variants": len(canary.variants)}
        event = Event(ts=canary.created, name="canary_committed", subject=f"canary:{canary.id}", data=data)
        try:
            await asyncio.wait_for(asyncio.shield(self._ledger.append(event)), _LEDGER_S)
        except TimeoutError:
            raise Unavailable(
                f"ledger: canary {canary.id} is not committed after {_LEDGER_S:.0f} s; it stays pending and unseen: "
                "retire it, and make another once the ledger writes"
            ) from None

    async def _set_state(self, canary_id: str, state: State) -> Canary:
        async with self._db.transaction() as tx:
            change = await next_number(tx, _COUNTER)
            await tx.execute("UPDATE canaries SET state = $2, changed = $3 WHERE id = $1", canary_id, state, change)
        await self.refresh()
        return await self.show(canary_id)


def _plain(ask: Ask) -> bool:
    body = ask.body
    return (
        ask.kind == "chat"
        and ask.n == 1
        and ask.top_logprobs is None
        and not ask.images
        and not body.get("tools")
        and not body.get("functions")
        and (body.get("response_format") or {"type": "text"}).get("type") == "text"
    )


def _question(messages: Sequence[Mapping[str, Any]], longest: int) -> str | None:
    """The only turn, of a user, beside instructions; None if there are others, or it is too long to matter."""
    turns = [message for message in messages if message.get("role") not in ("system", "developer")]
    if len(turns) != 1 or turns[0].get("role") != "user":
        return None
    content = turns[0].get("content")
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if part.get("type") == "text")
    return content if isinstance(content, str) and len(content) <= longest else None


def _folded(text: str) -> str:
    return " ".join(text.split())


def _checked(prompt: str, variants: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    prompt, texts = prompt.strip(), tuple(variant.strip() for variant in variants)
    if not _SHORTEST_PROMPT <= len(_folded(prompt)) <= len(prompt) <= _LONGEST_TEXT:
        raise BadInput(
            f"canary prompt: {len(_folded(prompt))} characters; write {_SHORTEST_PROMPT} to {_LONGEST_TEXT}, a "
            "question that nobody asks who has not seen it"
        )
    if not 2 <= len(texts) <= MOST_VARIANTS:
        raise BadInput(f"canary variants: {len(texts)}; give 2 to {MOST_VARIANTS}, one is published")
    if not all(0 < len(text) <= _LONGEST_TEXT for text in texts):
        raise BadInput(f"canary variants: each has 1 to {_LONGEST_TEXT} characters")
    if len({_folded(text) for text in texts}) != len(texts):
        raise BadInput("canary variants: two are alike; each must be told from the others")
    if any("\0" in text for text in (prompt, *texts)):
        raise BadInput("canary: a zero byte in its text; take it out")
    return prompt, texts


def _from_row(row: Mapping[str, Any]) -> Canary:
    return Canary(
        id=row["id"],
        created=row["created"],
        prompt=row["prompt"],
        variants=tuple(orjson.loads(row["variants"])),
        published=row["published"],
        salt=bytes(row["salt"]),
        commit=row["canary_commit"],
        state=row["state"],
    )
