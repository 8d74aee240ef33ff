"""Asking an upstream: which one, when another may be tried, and what its refusals mean to a customer."""

from __future__ import annotations

import time
from typing import Any

import orjson

from spiritsafe.serve._call import Call
from spiritsafe.serve._connection import Reply, UpstreamFailure
from spiritsafe.serve._policy import mark
from spiritsafe.serve._upstreams import UpstreamState
from spiritsafe.wire import ApiError

__all__ = ["ask_upstream", "failure_error", "reply_error"]

_PATHS = {
    "chat": b"/chat/completions",
    "completions": b"/completions",
    "responses": b"/responses",
    "embeddings": b"/embeddings",
}
_DID_NOTHING = (429, 503)  # an upstream that says so has not begun: another may be asked
_CUSTOMERS_FAULT = (400, 413, 422)
_LONGEST_MESSAGE = 500


async def ask_upstream(call: Call, body: dict[str, Any]) -> tuple[UpstreamState, Reply]:
    """Send `body`; a reply with status 200, its body still to come.

    Another upstream is asked only where the first was not reached or says that it did nothing: what may have been
    generated is not paid for twice.

    Raises:
        ApiError: no upstream gave one.
        UpstreamFailure: the last one asked broke off.
    """
    upstream: UpstreamState | None = call.first
    tried: list[UpstreamState] = []
    error: ApiError | None = None
    while upstream is not None:
        tried.append(upstream)
        call.upstream = upstream.config.name
        try:
            reply = await _send(call, upstream, body)
        except UpstreamFailure as failure:
            upstream.failed()
            call.guard.tell.upstream_failed(upstream, failure.kind)
            if failure.kind != "connect":
                raise
            error = failure_error(failure)
        else:
            if reply.status == 200:
                return upstream, reply
            raw = await reply.read()
            if reply.status >= 500:
                upstream.failed()
            else:
                upstream.worked()
            call.guard.tell.upstream_failed(upstream, str(reply.status))
            error = reply_error(reply.status, raw)
            if reply.status not in _DID_NOTHING:
                raise error
        upstream = call.guard.upstreams.pick(call.ask.model, tried)
    assert error is not None
    raise error


async def _send(call: Call, upstream: UpstreamState, body: dict[str, Any]) -> Reply:
    if call.watermark_key_id is not None:
        body = mark(body, call.watermark_key_id, upstream.config.watermark)
    headers = upstream.headers
    if call.span is not None:
        headers = [*headers, *call.span.upstream_headers(upstream.config.name)]
    if call.asked is None:
        call.asked = time.perf_counter()
    return await upstream.pool.request(b"POST", _PATHS[call.ask.kind], headers, orjson.dumps(body))


def failure_error(failure: UpstreamFailure) -> ApiError:
    """What a customer is told of an upstream that brought no reply."""
    if failure.kind == "timeout":
        return ApiError(504, f"the model's server {failure}; try again", code="upstream_timeout")
    if failure.kind == "connect":
        return ApiError(503, "the model's server cannot be reached now; try again shortly", code="upstream_unavailable")
    return ApiError(502, "the model's server broke off its reply; try again", code="upstream_broken")


def reply_error(status: int, raw: bytes) -> ApiError:
    """An upstream's error as the customer sees it: their own faults as they are, the operator's without details."""
    said = _said(raw)
    if status in _CUSTOMERS_FAULT and said.get("param") != "watermark_key_id":
        message = said.get("message")
        param, code = said.get("param"), said.get("code")
        return ApiError(
            400,
            message[:_LONGEST_MESSAGE]
            if isinstance(message, str) and message
            else "the model's server refused this request",
            param=param if isinstance(param, str) else None,
            code=code if isinstance(code, str) else None,
        )
    if status in _DID_NOTHING:
        return ApiError(503, "the model's server is busy; try again shortly", code="upstream_busy")
    if status in (408, 504):
        return ApiError(504, "the model's server took too long; try again", code="upstream_timeout")
    return ApiError(502, "the model's server answered with an error; try again", code="upstream_error")


def _said(raw: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    error = data.get("error", data) if isinstance(data, dict) else {}
    return error if isinstance(error, dict) else {}
