"""What is written down: a row for each reply, and events beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["PERSONAL", "Event", "LedgerRow"]

PERSONAL = ("asn", "end_user", "ip_prefix", "payment_id", "user_agent")


class LedgerRow(NamedTuple):
    """One reply, or what is known of one that was lost. A named tuple: it is made on the path of every request, where
    a frozen dataclass of this size costs 8 µs against 1 µs.

    ts: when the request came, Unix seconds.  pico: the price in pico-dollars.  latency_ms: until the last byte.
    status: ok | client_gone | upstream_error | stream_broken | lost, or another word of the gateway's.
    logprobs: alternatives a token asked for.  turns: messages in the request.  policy: what the output policy did.
    account_slot: the committed slot whose key marked the reply.  twin_commit: commitment to pair and coin.
    features, skeleton, sketch: what detectors need in place of the prompt.
    end_user, ip_prefix, asn, user_agent, payment_id: personal; they enter the chain as commitments only.
    """

    ts: float
    request_id: str
    account: str
    key_id: str
    model: str
    tokens_in: int = 0
    tokens_out: int = 0
    pico: int = 0
    status: str = "ok"
    latency_ms: float = 0.0
    stream: bool = False
    n: int = 1
    temperature: float | None = None
    logprobs: int | None = None
    turns: int = 1
    policy: str = ""
    watermark_key_id: str | None = None
    account_slot: int | None = None
    twin_commit: str | None = None
    features: dict[str, Any] | None = None
    skeleton: str | None = None
    sketch: str | None = None
    org: str | None = None
    end_user: str | None = None
    ip_prefix: str | None = None
    asn: int | None = None
    user_agent: str | None = None
    payment_id: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an account, a key or the guard itself.

    name: slot_bound, ladder_step, terms_accepted, suspended …  subject: whom it is about.
    data: JSON values; nothing personal, nothing secret: it can never be taken back.
    id: unique; made when the event is appended unless given, so that a repeated commit cannot write it twice.
    """

    ts: float
    name: str
    subject: str
    data: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
