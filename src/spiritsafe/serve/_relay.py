"""Passing replies on: metered, filtered, and journalled before their last bytes leave."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson

from spiritsafe.records import Usage
from spiritsafe.serve._asking import failure_error
from spiritsafe.serve._call import Call
from spiritsafe.serve._connection import Reply, UpstreamFailure
from spiritsafe.serve._cycle import STOPPED
from spiritsafe.serve._events import EventSplitter, RawEvent
from spiritsafe.serve._http import Send, send_json
from spiritsafe.serve._upstreams import UpstreamState
from spiritsafe.wire import SSE_DONE, ApiError, sse_event

__all__ = ["read_marked", "read_whole", "relay_stream", "replay_stream", "send_whole"]

_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_DONE = b"[DONE]"


async def read_whole(call: Call, upstream: UpstreamState, reply: Reply) -> tuple[dict[str, Any], Usage]:
    """A whole reply, and what it used. Raises as `read_marked`."""
    data = await read_marked(call, upstream, reply)
    usage, note = call.guard.meter.usage(call.ask, call.applied, data, upstream.config)
    if note:
        call.policy.append(note)
    return data, usage


async def read_marked(call: Call, upstream: UpstreamState, reply: Reply) -> dict[str, Any]:
    """A whole reply, marked if it must be.

    Raises:
        UpstreamFailure: it broke off or is no JSON object.
        ApiError: 502, the upstream did not mark a reply that must be marked.
    """
    try:
        raw = await reply.read()
        call.answered = time.perf_counter()
        data = _object(raw)
    except UpstreamFailure as failure:
        _failed(call, upstream, failure)
        raise
    upstream.worked()
    _check_mark(call, upstream, data)
    return data


def _object(raw: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise UpstreamFailure("garbage", "sent something that is no JSON object")
    return data


def _failed(call: Call, upstream: UpstreamState, failure: UpstreamFailure) -> None:
    """A reply that had begun well did not end so."""
    upstream.failed()
    call.guard.tell.upstream_failed(upstream, failure.kind)


async def send_whole(call: Call, send: Send, body: bytes, usage: Usage) -> None:
    """Account for the reply, then send it."""
    call.close("ok", usage)
    call.responded = True
    await send_json(send, body, 200, call.headers)


async def relay_stream(call: Call, upstream: UpstreamState, reply: Reply, send: Send) -> None:
    """Pass a stream on, event by event, and end it with the account closed.

    An upstream that breaks off, or sends garbage, after the first event becomes an error event.

    Raises:
        UpstreamFailure, ApiError: it failed before anything was sent.
    """
    if not reply.headers.get(b"content-type", b"").lower().startswith(b"text/event-stream"):
        reply.close()
        failure = UpstreamFailure("garbage", "did not stream")
        _failed(call, upstream, failure)
        raise failure
    stream = _Stream(call, upstream)
    try:
        while (piece := await reply.next_piece()) is not None:
            if call.first_byte is None:
                call.first_byte = time.perf_counter()
            out = stream.feed(piece)
            if out:
                await _send_some(call, send, out)
            if stream.ended:
                break
        stream.end_of_bytes()
    except UpstreamFailure as failure:
        reply.close()
        _failed(call, upstream, failure)
        if not call.responded:
            raise
        last = sse_event(failure_error(failure).to_dict())
        call.close("stream_broken", stream.usage())
    except BaseException:
        reply.close()
        call.usage_so_far = stream.usage()
        if call.responded and call.guard.draining:
            call.close("stream_broken", call.usage_so_far)
            await _send_some(call, send, sse_event(STOPPED.to_dict()), more=False)
        raise
    else:
        reply.finish()
        upstream.worked()
        last = stream.last
        call.close("ok", stream.usage())
    await _send_some(call, send, last, more=False)


async def replay_stream(call: Call, send: Send, body: bytes, usage: Usage) -> None:
    """A whole reply, already written as events, as a stream."""
    call.close("ok", usage)
    await _send_some(call, send, body, more=False)


async def _send_some(call: Call, send: Send, body: bytes, more: bool = True) -> None:
    """Part of a stream. The status line leaves with the first part: until then a failure can still have its own."""
    if not call.responded:
        call.responded = True
        await send({"type": "http.response.start", "status": 200, "headers": [*_STREAM_HEADERS, *call.headers]})
    await send({"type": "http.response.body", "body": body, "more_body": more})


class _Stream:
    """One stream on its way through. last: the events held back until the account is closed."""

    def __init__(self, call: Call, upstream: UpstreamState) -> None:
        self._call, self._upstream = call, upstream
        self._events = EventSplitter()
        self._meter = call.guard.meter.stream(call.ask, call.applied, upstream.config)
        self._filter = call.applied.filter
        self._checked = False
        self.ended = False
        self.last = b""

    def feed(self, piece: bytes) -> bytes:
        """The bytes that may leave now.

        Raises:
            UpstreamFailure: the stream is garbage, or carries an error.
        """
        try:
            events = self._events.feed(piece)
        except ValueError as error:
            raise UpstreamFailure("garbage", str(error)) from None
        self._call.guard.metrics.chunk(len(events))
        out = [passed for event in events if (passed := self._pass(event))]
        self._call.release_up_to(self._meter.tokens_out)
        return b"".join(out)

    def _pass(self, event: RawEvent) -> bytes:
        if self.ended:
            return b""
        if event.data == _DONE:
            self.ended = True
            self.last += SSE_DONE
            return b""
        try:
            data = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            raise UpstreamFailure("garbage", "sent an event that is no JSON object")
        if data.get("error"):
            raise UpstreamFailure("broken", "sent an error within its stream")
        if not self._checked:
            _check_mark(self._call, self._upstream, data)
            self._checked = True
        self._meter.feed(data)
        if self._meter.overrun:
            raise UpstreamFailure("garbage", "streams on beyond what was asked for")
        kept = self._filter.chunk(data)
        passed = b"" if kept is None else event.encode(orjson.dumps(kept))
        if self._meter.finished:
            # after the last token: these wait until the account is closed
            self.last += passed
            self.ended = self._call.ask.kind == "responses"
            return b""
        return passed

    def end_of_bytes(self) -> None:
        """Raise `UpstreamFailure` if the upstream stopped in the middle."""
        if not self.ended and not self._meter.finished:
            raise UpstreamFailure("broken", "ended its stream early")

    def usage(self) -> Usage:
        """What the stream used, as far as it came."""
        usage, note = self._meter.usage()
        if note and note not in self._call.policy:
            self._call.policy.append(note)
        return usage


def _check_mark(call: Call, upstream: UpstreamState, data: Mapping[str, Any]) -> None:
    """A marked tier's reply leaves marked or not at all. vLLM's plugin does not say; this project's server does."""
    wanted = call.watermark_key_id
    if wanted is None:
        return
    if greedy := data.get("watermark_greedy"):
        call.policy.append(f"greedy={greedy}")
    if upstream.config.watermark == "spiritsafe" and data.get("watermark_key_id") != wanted:
        call.guard.tell.unmarked(upstream)
        raise ApiError(
            502,
            "the model's server could not answer as this account needs; the operator has been told",
            code="upstream_error",
        )
