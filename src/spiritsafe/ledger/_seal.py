"""From a row to what the database stores of it, short of its place in the chain."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import orjson

from spiritsafe.ledger._chain import SALT_BYTES, canonical, commit_personal
from spiritsafe.ledger._rows import PERSONAL, Event, LedgerRow
from spiritsafe.ledger._totals import Amounts, Counted, day_of

__all__ = ["EVENT_FIELDS", "REPLY_FIELDS", "Sealed", "seal"]

# Every field of a payload, besides "personal".
REPLY_FIELDS = tuple(sorted(set(LedgerRow._fields) - set(PERSONAL)))
EVENT_FIELDS = ("data", "id", "name", "subject", "ts")


class Sealed(NamedTuple):
    """An entry ready to be chained.

    id: the request's, or the event's own.  salt, personal: hex and JSON, None without personal fields.
    counted, amounts: what it adds to the totals; None for events.
    """

    kind: str
    ts: float
    id: str
    account: str
    payload: bytes
    salt: str | None
    personal: str | None
    counted: Counted | None
    amounts: Amounts | None


def seal(entry: LedgerRow | Event) -> Sealed:
    """Serialise an entry and commit to its personal fields.

    Raises:
        ValueError: a time that is none, or a zero byte in an id (Postgres cannot hold one).
        TypeError: a value that JSON cannot hold.
    """
    return _seal_reply(entry) if isinstance(entry, LedgerRow) else _seal_event(entry)


def _seal_reply(row: LedgerRow) -> Sealed:
    if "\0" in f"{row.request_id}{row.account}{row.key_id}{row.model}{row.org}":
        raise ValueError(f"request {row.request_id!r}: a zero byte in an id, model or organisation")
    ts = float(row.ts)
    counted = Counted(row.account, row.key_id, row.org, row.model, day_of(ts))
    salt = personal = None
    commitments: dict[str, str] = {}
    values = _personal(row)
    if values:
        salted = os.urandom(SALT_BYTES)
        commitments = commit_personal(salted, values)
        salt, personal = salted.hex(), orjson.dumps(values).decode()
    payload = canonical(
        {
            "account": row.account,
            "account_slot": row.account_slot,
            "features": row.features or {},
            "key_id": row.key_id,
            "latency_ms": float(row.latency_ms),
            "logprobs": None if row.logprobs is None else int(row.logprobs),
            "model": row.model,
            "n": row.n,
            "org": row.org,
            "personal": commitments,
            "pico": row.pico,
            "policy": row.policy,
            "request_id": row.request_id,
            "skeleton": row.skeleton,
            "sketch": row.sketch,
            "status": row.status,
            "stream": row.stream,
            "temperature": None if row.temperature is None else float(row.temperature),
            "tokens_in": row.tokens_in,
            "tokens_out": row.tokens_out,
            "ts": ts,
            "turns": row.turns,
            "twin_commit": row.twin_commit,
            "watermark_key_id": row.watermark_key_id,
        }
    )
    amounts = (1, row.tokens_in, row.tokens_out, row.pico)
    return Sealed("reply", ts, row.request_id, row.account, payload, salt, personal, counted, amounts)


def _seal_event(event: Event) -> Sealed:
    if "\0" in f"{event.id}{event.subject}":
        raise ValueError(f"event {event.name}: a zero byte in its id or subject")
    ts = float(event.ts)
    day_of(ts)  # refuses what is no time
    name = event.id or f"ev_{os.urandom(16).hex()}"
    payload = canonical({"data": dict(event.data), "id": name, "name": event.name, "subject": event.subject, "ts": ts})
    return Sealed("event", ts, name, event.subject, payload, None, None, None, None)


def _personal(row: LedgerRow) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if row.asn is not None:
        values["asn"] = row.asn
    if row.end_user is not None:
        values["end_user"] = row.end_user
    if row.ip_prefix is not None:
        values["ip_prefix"] = row.ip_prefix
    if row.payment_id is not None:
        values["payment_id"] = row.payment_id
    if row.user_agent is not None:
        values["user_agent"] = row.user_agent
    return values
