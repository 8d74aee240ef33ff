"""Twin replies: two replies to one request, one released by a coin, the other sealed, both committed to beforehand.

What the gateway does with a request that `Twins.wanted` picks:

1. Reserve both on the operator's side, one on the customer's. Send the same bytes twice (marking included) to the same
   upstream, whole (`stream` off), side by side.
2. If one fails, release the other: no pair. If both came, put each through the output policy, then `Twins.choose`.
3. Write `twin_commit` into the ledger row and wait until the ledger has it on disk, then release the reply chosen: its
   `id` and `created` are the request's own (not the upstream's), headers and usage come from this reply only. A stream
   is played back from it (`as_stream`).
4. The customer pays for the released reply, the operator for both.

So id, time, order and price are the same whichever the coin chose. That a stream *is* a twin may be guessed from its
late first token; which of the two was released cannot.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from spiritsafe.ledger import Event
from spiritsafe.ledger._evidence import TWIN_FORMAT, canonical_json, twin_commit
from spiritsafe.serve._account_text import one_line
from spiritsafe.state import Database, Unavailable

if TYPE_CHECKING:
    from spiritsafe.serve._account_store import EventLog
    from spiritsafe.serve._config import GuardConfig
    from spiritsafe.serve._types import Identity
    from spiritsafe.wire import Ask

__all__ = ["Choice", "Twins", "committed_twins", "erase_twins", "export_twins"]

_DAY = 86400.0
_BITS = 53
_KEPT = ("object", "model", "choices", "prompt_token_ids")  # what of a reply is evidence; not its id, time and usage
_PAGE = 200
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """released: 0 for the first reply, 1 for the second.  twin_commit: hex, for the ledger row."""

    released: int
    twin_commit: str


class Twins:
    """Picks requests, flips coins, keeps pairs."""

    def __init__(self, db: Database, config: GuardConfig, *, clock: Callable[[], float] = time.time) -> None:
        self._db, self._config, self._clock = db, config, clock

    def wanted(self, ask: Ask, identity: Identity) -> bool:
        """True if this request is to be answered twice: it may be, its sender consents, and it was drawn.

        The draw is from the system's randomness, anew for each request: no client can predict or repeat it.
        """
        tiers = self._config.tiers
        share = (tiers.get(identity.tier) or tiers["default"]).twin_share
        if share <= 0 or not self._consents(identity) or not _eligible(ask):
            return False
        return secrets.randbits(_BITS) < share * float(2**_BITS)

    async def choose(
        self,
        *,
        request_id: str,
        account: str,
        model: str,
        request: Mapping[str, Any],
        first: bytes | Mapping[str, Any],
        second: bytes | Mapping[str, Any],
        watermark_key_id: str | None = None,
    ) -> Choice | None:
        """Flip the coin and keep the pair. When this returns a choice, it is on disk.

        request: the JSON that was sent upstream.  first, second: the whole replies as they may be released, after the
        output policy, in the order asked.

        None: there is no pair, release the first. The texts are the same, one is no reply, or the pair cannot be kept
        (logged).
        """
        pair = _reduced(first), _reduced(second)
        if pair[0] is None or pair[1] is None or _said(pair[0]) == _said(pair[1]):
            return None
        coin, salt, now = secrets.randbelow(2), secrets.token_bytes(32), self._clock()
        commit = twin_commit(salt, coin, *pair, request)
        try:
            kept = await self._db.execute(
                "INSERT INTO twins (request_id, account, model, created, expires, watermark_key_id, request, first,"
                " second, coin, salt, twin_commit) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12)"
                " ON CONFLICT (request_id) DO NOTHING",
                request_id,
                account,
                model,
                now,
                now + self._config.twins.retention_days * _DAY,
                watermark_key_id,
                *(canonical_json(value).decode() for value in (request, *pair)),
                coin,
                salt,
                commit,
            )
        except Unavailable as error:
            _log.warning("twins: request %s goes out without its twin: %s", request_id, error)
            return None
        return Choice(coin, commit) if kept else None

    async def expire(self, now: float) -> int:
        """Delete the pairs whose retention ended; how many. Their commitments stay in the ledger and say nothing."""
        return await self._db.execute("DELETE FROM twins WHERE expires <= $1", now)

    def _consents(self, identity: Identity) -> bool:
        if self._config.twins.consent == "account":
            return identity.twin_consent
        terms = self._config.terms
        return terms is not None and identity.terms_version == terms.version


async def export_twins(
    db: Database, *, account: str | None = None, model: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    """The pairs an audit can use, opened, oldest first: {"format", "request_id", "account", "model", "created",
    "watermark_key_id", "request", "first", "second", "coin", "salt", "twin_commit", "seq"}.

    Only pairs whose commitment is in the ledger's row (`seq`) of that request: others were never released.
    `verify_twin` checks each against the row. Whoever holds an opened pair can train on the sealed reply too: later
    models prove nothing with it.
    """
    after: tuple[float, str] = (0.0, "")
    while True:
        rows = await db.fetch(
            "SELECT t.*, l.seq, l.payload FROM twins t JOIN ledger l ON l.request_id = t.request_id"
            " WHERE (t.created > $1 OR (t.created = $1 AND t.request_id > $2))"
            " AND ($3 = '' OR t.account = $3) AND ($4 = '' OR t.model = $4)"
            " ORDER BY t.created, t.request_id LIMIT $5",
            *after,
            account or "",
            model or "",
            _PAGE,
        )
        for row in rows:
            if orjson.loads(row["payload"]).get("twin_commit") == row["twin_commit"]:
                yield {
                    "format": TWIN_FORMAT,
                    **{name: row[name] for name in ("request_id", "account", "model", "created", "watermark_key_id")},
                    **{name: orjson.loads(row[name]) for name in ("request", "first", "second")},
                    "coin": row["coin"],
                    "salt": bytes(row["salt"]).hex(),
                    "twin_commit": row["twin_commit"],
                    "seq": row["seq"],
                }
        if len(rows) < _PAGE:
            return
        after = (rows[-1]["created"], rows[-1]["request_id"])


async def erase_twins(db: Database, ledger: EventLog, account: str, *, reason: str, decided_by: str, now: float) -> int:
    """Delete the pairs of an account (its id) for good, once the ledger has the event `twins_erased`; how many.

    Their commitments stay in the ledger and say nothing without them. Pairs made after `now` are not touched.

    Raises:
        BadInput: no reason.  Unavailable: database or ledger cannot be written; nothing was deleted.
    """
    data = {"reason": one_line("reason", reason, 2000), "decided_by": one_line("decided_by", decided_by)}
    rows = await db.fetch("SELECT COUNT(*) AS n FROM twins WHERE account = $1 AND created <= $2", account, now)
    await ledger.append(Event(ts=now, name="twins_erased", subject=account, data={"pairs": int(rows[0]["n"]), **data}))
    return await db.execute("DELETE FROM twins WHERE account = $1 AND created <= $2", account, now)


async def committed_twins(db: Database, *, account: str | None = None, model: str | None = None) -> int:
    """How many pairs the ledger holds a commitment to, kept or not. An audit that opens fewer has to say why."""
    count, after = 0, 0
    while True:
        rows = await db.fetch(
            "SELECT seq, payload FROM ledger WHERE seq > $1 AND kind = 'reply' AND payload LIKE $2"
            " AND ($3 = '' OR account = $3) ORDER BY seq LIMIT $4",
            after,
            '%"twin_commit":"%',
            account or "",
            _PAGE,
        )
        payloads = [orjson.loads(row["payload"]) for row in rows]
        count += sum(bool(row["twin_commit"]) and model in (None, row["model"]) for row in payloads)
        if len(rows) < _PAGE:
            return count
        after = rows[-1]["seq"]


def _eligible(ask: Ask) -> bool:
    """A plain question with chance in its answer: chat or completions, one reply, no tools, images or seed."""
    body = ask.body
    return (
        ask.kind in ("chat", "completions")
        and ask.n == ask.prompts == 1
        and (ask.temperature is None or ask.temperature > 0)
        and not ask.images
        and body.get("seed") is None
        and not body.get("tools")
        and not body.get("functions")
    )


def _reduced(reply: bytes | Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        whole = orjson.loads(reply) if isinstance(reply, bytes) else reply
        kept = {name: whole[name] for name in _KEPT if name in whole}
        return kept if len(kept["choices"]) == 1 else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _said(reply: Mapping[str, Any]) -> tuple[Any, ...]:
    """All text of a reply with one choice."""
    choice = reply["choices"][0]
    message = choice.get("message") or {}
    spoken = (message.get(name) for name in ("content", "reasoning_content", "reasoning", "refusal"))
    return (choice.get("text"), *spoken)
