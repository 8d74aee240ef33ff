"""The outbox: messages for webhooks as rows of the database. Any process may put one in; `Webhooks` delivers them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from spiritsafe.serve._config import Happening, WebhookConfig
from spiritsafe.state import Transaction

__all__ = ["GIVE_UP_S", "message_id", "put_message"]

GIVE_UP_S: Final = 86400.0
_REMEMBERED_S = 40 * 86400.0  # longer than a month's window


def message_id(event: Happening, subject: str, once: str | None) -> str:
    """A new id; the same for the same `event`, `subject` and `once` where that is given."""
    return "evt_" + (secrets.token_hex(16) if once is None else _digest(event, subject, once))


async def put_message(
    tx: Transaction,
    hooks: Iterable[WebhookConfig],
    event: Happening,
    subject: str,
    data: Mapping[str, Any],
    *,
    at: float,
    once: str | None = None,
) -> None:
    """Put a message into the outbox for each of `hooks` that wants `event`: it goes out if `tx` is committed.

    subject, data, once: as of `Webhooks.send`.  at: Unix seconds.
    """
    event_id = message_id(event, subject, once)
    body = orjson.dumps({"id": event_id, "event": event, "created": int(at), "data": {"subject": subject, **data}})
    keep = None if once is not None and once.endswith("all") else at + (GIVE_UP_S if once is None else _REMEMBERED_S)
    await tx.execute_many(
        "INSERT INTO outbox (id, url, event, body, created, attempts, next_at, keep_until)"
        " VALUES ($1, $2, $3, $4, $5, 0, $5, $6) ON CONFLICT (id) DO NOTHING",
        [
            (f"{event_id}:{_digest(hook.url)[:8]}", hook.url, event, body.decode(), at, keep)
            for hook in hooks
            if event in hook.events
        ],
    )


def _digest(*parts: str) -> str:
    framed = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (part.encode() for part in parts))
    return hashlib.sha256(framed).hexdigest()[:32]
