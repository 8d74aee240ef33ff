"""One request that has reserved: what it holds, and its end, which comes exactly once however the request ends."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from spiritsafe.ledger import LedgerRow
from spiritsafe.records import Usage
from spiritsafe.serve._limits import Bucket, Denied, Granted, Ticket
from spiritsafe.serve._types import Demand, Identity
from spiritsafe.spend import Price
from spiritsafe.state import Unavailable

if TYPE_CHECKING:
    from spiritsafe.serve._guard import Guard
    from spiritsafe.serve._policy import Applied
    from spiritsafe.serve._sketch import Sketch
    from spiritsafe.serve._traces import RequestSpan
    from spiritsafe.serve._upstreams import UpstreamState
    from spiritsafe.wire import Ask

__all__ = ["NOTHING", "Call", "Client", "Status", "charge", "times_list_price"]

NOTHING = Usage(0, 0)

Status = Literal["ok", "client_gone", "upstream_error", "stream_broken"]


class Client(NamedTuple):
    """Where a request came from; personal, so it enters the ledger's chain as commitments only.

    asn: number of the autonomous system that the address belongs to.
    """

    ip_prefix: str | None
    asn: int | None
    user_agent: str | None


def charge(price: Price, times: Decimal, usage: Usage) -> int:
    """Pico-dollars of a call at `times` the list price, rounded up."""
    return times_list_price(price.cost(usage), times)


def times_list_price(pico: int, times: Decimal) -> int:
    """Pico-dollars at `times` the list price, rounded up."""
    return pico if times == 1 else int((pico * times).to_integral_value(ROUND_CEILING))


@dataclass(slots=True, eq=False)
class Call:
    """A request from its reservation to its settlement. Amounts are the customer's."""

    guard: Guard
    id: str
    arrived: float
    started: float
    identity: Identity
    client: Client
    ask: Ask
    applied: Applied
    price: Price
    times: Decimal
    first: UpstreamState
    tokens_in: int = 0  # the most the prompt may take
    likely_in: int = 0  # what it is charged as where no upstream says
    ticket: Ticket | None = None  # once it has reserved
    policy: list[str] = field(default_factory=list)
    watermark_key_id: str | None = None
    twin_commit: str | None = None
    may_release: int = 0  # output tokens the journal allows to have left
    first_byte: float | None = None
    upstream: str = ""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # of the answer
    span: RequestSpan | None = None
    responded: bool = False  # the status line has left
    http_status: int = 200
    asked: float | None = None  # when the request went upstream, when its reply was whole
    answered: float | None = None
    usage_so_far: Usage | None = None  # of a stream that was left
    sketch: Sketch | None = None
    usage: Usage | None = None
    row: LedgerRow | None = None
    written: asyncio.Future[int] | None = None

    @property
    def slot(self) -> int | None:
        """The watermark slot whose key marks the reply."""
        return None if self.watermark_key_id is None else int(self.watermark_key_id.rpartition("/")[2])

    def draw_sketch(self) -> None:
        """Work out the sketch, if that has not been done; best while the upstream is busy."""
        if self.sketch is None:
            self.sketch = self.guard.sketch(self.ask)

    async def reserve(self, buckets: tuple[Bucket, ...]) -> Granted | Denied:
        """Take a request's amounts from its limits. What may be held is in the journal before anything is: whatever
        this process had come to when it died, a successor gives it back.

        Raises:
            Unavailable: the journal cannot be written; nothing is held.
        """
        journal, limiter = self.guard.journal, self.guard.limiter
        likely = Ticket(self.id, buckets, limiter.generation)
        journal.opened(self.id, self._facts(likely))
        outcome = await limiter.reserve(buckets, self.id)
        if isinstance(outcome, Denied):
            if not outcome.undecided:
                journal.forget([self.id])
            return outcome
        self.ticket = ticket = outcome.ticket
        if ticket.buckets is not buckets or ticket.generation != likely.generation or not ticket.tracked:
            try:
                journal.opened(self.id, self._facts(ticket))
            except Unavailable:
                await limiter.refund(ticket)
                raise
        return outcome

    def _facts(self, ticket: Ticket) -> dict[str, Any]:
        """What a successor needs to account for this request if this process dies now."""
        return {
            "ts": self.arrived,
            "account": self.identity.account,
            "key_id": self.identity.key_id,
            "org": self.identity.org,
            "model": self.ask.model,
            "stream": self.ask.stream,
            "n": self.applied.n,
            "tokens_in": self.likely_in,
            "price": self.guard.price_facts(self.price),
            "times": str(self.times),
            "ticket": ticket.to_facts(),
            "watermark_key_id": self.watermark_key_id,
            "account_slot": self.slot,
        }

    def release_up_to(self, tokens: int) -> None:
        """Journal that up to so many output tokens may leave, some ahead so that not every chunk is written down."""
        if tokens > self.may_release:
            self.may_release = min(tokens + 63, self.applied.bounds[1])  # no more than is reserved
            self.guard.journal.may_release(self.id, self.may_release)

    def close(self, status: Status, usage: Usage) -> None:
        """Fix what this request came to and journal it; call it before the last bytes leave. Later calls do nothing."""
        if self.row is not None:
            return
        ask, identity = self.ask, self.identity
        self.draw_sketch()
        sketch = self.sketch
        assert sketch is not None
        pico = charge(self.price, self.times, usage)
        self.usage = usage
        self.row = LedgerRow(
            ts=self.arrived,
            request_id=self.id,
            account=identity.account,
            key_id=identity.key_id,
            model=ask.model,
            end_user=ask.end_user,
            tokens_in=usage.input_tokens,
            tokens_out=usage.output_tokens,
            pico=pico,
            status=status,
            latency_ms=round(1000 * (time.perf_counter() - self.started), 3),
            stream=ask.stream,
            n=self.applied.n,
            temperature=ask.temperature,
            logprobs=ask.top_logprobs,
            turns=ask.turns,
            policy=",".join([self.applied.note, *self.policy]) if self.policy else self.applied.note,
            watermark_key_id=self.watermark_key_id,
            account_slot=self.slot,
            twin_commit=self.twin_commit,
            features=sketch.features,
            skeleton=sketch.skeleton,
            sketch=sketch.sketch,
            org=identity.org,
            ip_prefix=self.client.ip_prefix,
            asn=self.client.asn,
            user_agent=self.client.user_agent,
            payment_id=identity.payment_id,
        )
        try:
            self.guard.journal.closed(self.row)
        except Unavailable:
            if not self.responded:  # nothing may leave that is not written down, so nothing is charged
                self.usage = NOTHING
                self.row = self.row._replace(status="upstream_error", tokens_in=0, tokens_out=0, pico=0)
            raise

    async def recorded(self) -> None:
        """Wait until the row is in the ledger, on disk. Needs `close` first."""
        assert self.row is not None
        if self.written is None:
            self.written = self.guard.ledger.append(self.row)
        await asyncio.shield(self.written)

    async def settle(self) -> None:
        """Give back what was not used, and write the row. Needs `close` first."""
        row, usage = self.row, self.usage
        assert row is not None
        assert usage is not None
        assert self.ticket is not None
        if self.written is None:
            self.written = self.guard.ledger.append(row)
        crossed = await self.guard.limiter.settle(
            self.ticket, Demand(usage.input_tokens, usage.output_tokens, -(-row.pico // 1000))
        )
        if crossed:
            self.guard.tell.near_limit(crossed)
        if self.span is not None:
            self.span.end(self.http_status, usage, None if row.status == "ok" else row.status)
        self.guard.tell.finished(self, row)
