"""A request's life: who asks, for what, may they, what it may cost at most; then the upstream, and the settlement."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Sequence

from spiritsafe.errors import Refused, SpiritsafeError
from spiritsafe.records import Usage
from spiritsafe.serve._access import require_scope
from spiritsafe.serve._answering import answer
from spiritsafe.serve._api_keys import Scope as KeyScope
from spiritsafe.serve._asking import failure_error
from spiritsafe.serve._call import NOTHING, Call, times_list_price
from spiritsafe.serve._connection import UpstreamFailure
from spiritsafe.serve._guard import Guard
from spiritsafe.serve._http import (
    ClientGone,
    DisconnectWatch,
    Receive,
    Refusal,
    Scope,
    Send,
    header,
    read_body,
    send_error,
)
from spiritsafe.serve._limits import Denied, Granted, Plan, buckets_for, rate_headers
from spiritsafe.serve._types import Demand, Identity
from spiritsafe.state import Unavailable
from spiritsafe.wire import ApiError, Ask, AskKind, parse_ask

__all__ = ["Handler"]

_BODY_S = 30.0
_UNHURRIED_S = 0.05
_CLIENT_GONE = 499  # for metrics and logs only
_log = logging.getLogger("spiritsafe.serve")


class Handler:
    """Answers the four POST routes."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._max_body = int(guard.config.max_body_mb * 2**20)
        models = guard.config.models
        self._models = {name: tier.models or models for name, tier in guard.config.tiers.items()}
        self._process, self._numbers = (
            secrets.token_hex(8),
            itertools.count(),
        )  # together unique, without asking the system

    def identify(self, scope: Scope, *scopes: KeyScope) -> Identity:
        """Who asks, by the bearer token.

        Raises:
            ApiError: 401 without a valid key, 403 if it has none of `scopes`.
        """
        kind, _, token = (header(scope, b"authorization") or b"").partition(b" ")
        identity = self._guard.accounts.authenticate(token.strip()) if kind.lower() == b"bearer" else None
        if identity is None:
            raise ApiError(
                401, "missing or invalid API key; send it as: Authorization: Bearer KEY", code="invalid_api_key"
            )
        require_scope(identity, time.time(), *scopes)
        return identity

    def models_for(self, identity: Identity) -> Sequence[str]:
        """The models this account's tier may use."""
        return self._models[identity.tier]

    async def serve(self, kind: AskKind, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            ApiError: it is refused, and nothing was sent.
            ClientGone: there is nobody to answer.
        """
        started = time.perf_counter()
        guard = self._guard
        ask: Ask | None = None
        identity: Identity | None = None
        guard.metrics.in_flight(1)
        try:
            try:
                identity = self.identify(scope, "inference")
                guard.check_access(identity)
                ask = parse_ask(
                    kind, await read_body(scope, receive, self._max_body, _BODY_S), guard.config.allow_fields
                )
                call = await self._reserve(ask, identity, scope, started)
            except ApiError as error:
                guard.tell.refused(kind, ask, error, started, identity)
                raise
            await self._run(call, receive, send)
        finally:
            guard.metrics.in_flight(-1)

    async def _reserve(self, ask: Ask, identity: Identity, scope: Scope, started: float) -> Call:
        """All that is decided before a request may leave; from here on, limits hold what it may cost."""
        guard, now = self._guard, time.time()
        if ask.model not in self.models_for(identity):
            raise ApiError(
                404,
                f"no model {ask.model[:100]!r} here; GET /v1/models lists them",
                param="model",
                code="model_not_found",
            )
        applied = guard.apply(ask, identity)
        upstream = guard.upstreams.pick(ask.model)
        assert upstream is not None  # every listed model has one
        key_id = await self._mark_for(ask, identity)
        price = guard.meter.price(ask.model, upstream.config, now)
        times = await guard.price_times(identity)
        plan = buckets_for(guard.config, identity, ask.model, now)
        call_id = f"req_{self._process}{next(self._numbers):08x}"
        call = Call(
            guard=guard,
            id=call_id,
            arrived=now,
            started=started,
            identity=identity,
            client=guard.peers.client(scope),
            ask=ask,
            applied=applied,
            price=price,
            times=times,
            first=upstream,
            watermark_key_id=key_id,
        )
        for tight in (False, True):
            outcome = await self._take(call, plan, tight=tight)
            if isinstance(outcome, Granted) or outcome.undecided or upstream.config.tokenizer is None:
                break  # a tokenizer can bound the prompt closer, at a cost that only a refusal is worth
        call.headers = [(b"x-request-id", call_id.encode()), *rate_headers(outcome)]
        if isinstance(outcome, Denied):
            raise Refusal(outcome.to_error(), call.headers, outcome.rule)
        for rule in outcome.shadowed:
            guard.metrics.refused(rule, shadow=True)
        if guard.traces is not None:
            call.span = guard.traces.start(scope["headers"], ask.kind, ask.model, call_id)
        return call

    async def _take(self, call: Call, plan: Plan, *, tight: bool) -> Granted | Denied:
        """Reserve what a request may come to at worst."""
        meter, ask, upstream = self._guard.meter, call.ask, call.first.config
        tokens_in, tokens_out = meter.worst(ask, call.applied, upstream, tight=tight)
        call.tokens_in = tokens_in
        call.likely_in = min(meter.prompt_tokens(ask, upstream, quick=True), tokens_in)
        worst = -(-times_list_price(call.price.worst_case(tokens_in, tokens_out), call.times) // 1000)
        try:
            return await call.reserve(plan.demand(Demand(tokens_in, tokens_out, worst)))
        except Unavailable:
            raise _no_records() from None

    async def _mark_for(self, ask: Ask, identity: Identity) -> str | None:
        """The id of the key to mark this reply with; None where none is marked."""
        if ask.kind == "embeddings":
            return None
        try:
            key_id = await self._guard.watermark_key_id(identity)
        except (Refused, Unavailable) as error:
            _log.error("no watermark slot for account %s: %s", identity.account, error)
            raise ApiError(
                503, "this account cannot be served right now; the operator has been told", code="no_slot"
            ) from None
        if key_id is not None and ask.kind == "responses":
            raise ApiError(
                400, "/v1/responses is not available to this account; use /v1/chat/completions", code="policy"
            )
        return key_id

    async def _run(self, call: Call, receive: Receive, send: Send) -> None:
        """Answer, and settle whatever happens."""
        guard = self._guard
        error: ApiError | None = None
        try:
            try:
                async with DisconnectWatch(receive, 0.0 if call.ask.stream else _UNHURRIED_S):
                    await answer(call, send)
            except ClientGone:
                call.close("client_gone", call.usage_so_far or Usage(call.likely_in, 0))
            except UpstreamFailure as failure:
                error = failure_error(failure)
                call.close("upstream_error", NOTHING)
            except ApiError as refused:
                error = refused
                call.close("upstream_error", NOTHING)
        except Unavailable:
            error = _no_records()
        finally:
            call.http_status = 200 if call.responded else error.status if error else _CLIENT_GONE
            # without a shared state nothing in there waits, so nothing can be cancelled
            await (self._settle(call) if guard.settles_at_once else asyncio.shield(self._settle(call)))
        if error is not None and not call.responded:
            await send_error(send, error, call.headers)

    async def _settle(self, call: Call) -> None:
        if call.row is None:
            # cancelled in a shutdown, or a fault of ours: what has left is charged, and no more
            with contextlib.suppress(SpiritsafeError):
                call.close("client_gone" if call.responded else "upstream_error", call.usage_so_far or NOTHING)
        await call.settle()


def _no_records() -> ApiError:
    return ApiError(503, "the guard cannot write its records now; try again shortly", code="records_unavailable")
