"""What an upstream can do wrong, one function a fault: each gets the connection and the call.

Before the first byte: hang, fin, rst, not_http, redirect, leak.  Wrong bodies: no_json, html, list, empty, no_choices,
no_usage, absurd_usage, negative_usage, text_usage, overlong, more_choices, wrong_type, wrong_kind, gzip, huge.
Wrong framing: long_length, short_length, stale, split.  Streams: garbage_sse, sse_error, no_done,
die_fin, die_rst, stall, endless, huge_event, comments.  The faults of streams take the JSON answer's middle where the
call is none.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from guard_mock_replies import Call, chunked, event, head

Fault = Callable[[Any, Call], Awaitable[None]]
DONE = b"data: [DONE]\n\n"
SSE = "text/event-stream"


def reset(transport: Any) -> None:
    """RST instead of FIN: what the other side has not read yet is lost."""
    raw = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def hang(c: Any, call: Call) -> None:
    await asyncio.Event().wait()


async def fin(c: Any, call: Call) -> None:
    c.transport.close()


async def rst(c: Any, call: Call) -> None:
    reset(c.transport)


async def not_http(c: Any, call: Call) -> None:
    await c.send(b"220 mail.example.org ESMTP\r\n\r\n")


async def redirect(c: Any, call: Call) -> None:
    await c.send(head(302, length=0, location="http://127.0.0.1:9/v1/chat/completions"))


async def leak(c: Any, call: Call) -> None:
    """An error that repeats the key it was sent, as some servers do."""
    key = call.headers.get("authorization", "")
    await c.reply(401, {"error": {"message": f"Incorrect API key provided: {key}", "type": "auth", "code": key}})


async def no_json(c: Any, call: Call) -> None:
    await c.reply(200, b'{"id": "chatcmpl-1", "choices": [')


async def html(c: Any, call: Call) -> None:
    await c.reply(200, b"<html><body>Welcome to nginx!</body></html>", "text/html")


async def a_list(c: Any, call: Call) -> None:
    await c.reply(200, [1, 2, 3])


async def empty(c: Any, call: Call) -> None:
    await c.reply(200, b"")


async def no_choices(c: Any, call: Call) -> None:
    await c.reply(200, {"id": "x", "object": "chat.completion", "model": call.model, "usage": call.usage()})


def with_usage(usage: Any) -> Fault:
    """The right answer with another `usage`; None leaves it out."""

    async def fault(c: Any, call: Call) -> None:
        body = {key: value for key, value in call.whole().items() if key != "usage"}
        if usage is not None:
            body["usage"] = usage
        if not call.stream:
            await c.reply(200, body)
            return
        events = [e for e in call.events() if b'"usage"' not in e]
        if usage is not None:
            events.append(event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage}))
        await c.stream(call, [*events, DONE])

    return fault


async def overlong(c: Any, call: Call) -> None:
    """Four times the tokens that were asked for, and usage that says so."""
    call.tokens *= 4
    await (c.stream(call, [*call.events(), DONE]) if call.stream else c.reply(200, call.whole()))


async def more_choices(c: Any, call: Call) -> None:
    call.n += 3
    await (c.stream(call, [*call.events(), DONE]) if call.stream else c.reply(200, call.whole()))


async def wrong_type(c: Any, call: Call) -> None:
    """The right answer under a content type that says nothing."""
    if call.stream:
        await c.reply(200, b"".join([*call.events(), DONE]), "application/octet-stream")
    else:
        await c.reply(200, call.whole(), "text/plain")


async def wrong_kind(c: Any, call: Call) -> None:
    """JSON where a stream was asked for, a stream where JSON was."""
    await (c.reply(200, call.whole()) if call.stream else c.stream(call, [*call.events(), DONE]))


async def gzip(c: Any, call: Call) -> None:
    """Compressed, though nobody asked."""
    packer = zlib.compressobj(wbits=31)
    raw = packer.compress(orjson.dumps(call.whole())) + packer.flush()
    await c.send(head(200, length=len(raw), content_encoding="gzip") + raw)


async def huge(c: Any, call: Call) -> None:
    """A body of `mb` megabytes."""
    body = orjson.dumps(call.whole())
    padding = b"word " * int(call.mode.mb * 200_000)
    await c.reply(200, body.replace(b'"content":"', b'"content":"' + padding, 1))


async def long_length(c: Any, call: Call) -> None:
    """A length that promises more than comes."""
    raw = orjson.dumps(call.whole())
    await c.send(head(200, length=len(raw) + 100) + raw)
    c.transport.close()


async def short_length(c: Any, call: Call) -> None:
    """A length that is too short: the rest stands where the next answer is expected."""
    raw = orjson.dumps(call.whole())
    await c.send(head(200, length=len(raw) - 30) + raw)


async def stale(c: Any, call: Call) -> None:
    """A right answer on a connection that is closed just after, without having said so."""
    await c.reply(200, call.whole())
    c.transport.close()


async def split(c: Any, call: Call) -> None:
    """The right answer in writes of `split` bytes, cut anywhere."""
    size = call.mode.split or 1
    if call.stream:
        raw = head(200, SSE) + b"".join(chunked(e) for e in [*call.events(), DONE]) + b"0\r\n\r\n"
    else:
        body = orjson.dumps(call.whole())
        raw = head(200, length=len(body)) + body
    for at in range(0, len(raw), size):
        await c.send(raw[at : at + size])
        await asyncio.sleep(0)


async def garbage_sse(c: Any, call: Call) -> None:
    events = call.events()
    await c.stream(call, [*events[: len(events) // 2], b"data: {not json\n\n", b"\xff\xfe\x00: ?\n\n", DONE])


async def sse_error(c: Any, call: Call) -> None:
    """An error within the stream, as vLLM sends it, with the key in it."""
    said = {"message": f"engine died; key {call.headers.get('authorization', '')}", "type": "internal", "code": 500}
    events = call.events()
    await c.stream(call, [*events[: len(events) // 2], event({"error": said}), DONE])


async def no_done(c: Any, call: Call) -> None:
    await c.stream(call, call.events())


async def comments(c: Any, call: Call) -> None:
    """Keep-alive comments, named events and ids between the events, CRLF line ends."""
    noisy = [b": ping\r\n\r\nevent: message\r\nid: 7\r\n" + e.replace(b"\n", b"\r\n") for e in [*call.events(), DONE]]
    await c.stream(call, noisy)


async def endless(c: Any, call: Call) -> None:
    """The first delta again and again, for ever."""
    first = chunked(call.events()[0])
    await c.send(head(200, SSE))
    while True:
        await c.send(first)
        await asyncio.sleep(max(call.mode.interval_ms / 1000, 0.0005))


async def huge_event(c: Any, call: Call) -> None:
    """One event of `mb` megabytes, without an end."""
    await c.send(head(200, SSE) + chunked(b"data: "))
    for _ in range(int(call.mode.mb * 16)):
        await c.send(chunked(b"x" * 65536))
        await asyncio.sleep(0)
    await asyncio.Event().wait()


async def _half(c: Any, call: Call) -> None:
    """The first half of the answer."""
    if call.stream:
        events = call.events()
        await c.stream(call, events[: len(events) // 2], end=False)
    else:
        body = orjson.dumps(call.whole())
        await c.send(head(200, length=len(body)) + body[: len(body) // 2])
    await asyncio.sleep(0.02)  # it arrives before the end does


async def die_fin(c: Any, call: Call) -> None:
    await _half(c, call)
    c.transport.close()


async def die_rst(c: Any, call: Call) -> None:
    await _half(c, call)
    reset(c.transport)


async def stall(c: Any, call: Call) -> None:
    await _half(c, call)
    await asyncio.Event().wait()


_HUGE = {"prompt_tokens": 10**12, "completion_tokens": 10**12, "total_tokens": 2 * 10**12}
_NEGATIVE = {"prompt_tokens": -50, "completion_tokens": -(10**9), "total_tokens": -1}
_TEXT = {"prompt_tokens": "12", "completion_tokens": True, "total_tokens": None}

FAULTS: dict[str, Fault] = {
    "hang": hang, "fin": fin, "rst": rst, "not_http": not_http, "redirect": redirect, "leak": leak,
    "no_json": no_json, "html": html, "list": a_list, "empty": empty, "no_choices": no_choices,
    "no_usage": with_usage(None), "absurd_usage": with_usage(_HUGE), "negative_usage": with_usage(_NEGATIVE),
    "text_usage": with_usage(_TEXT), "overlong": overlong, "more_choices": more_choices, "wrong_type": wrong_type,
    "wrong_kind": wrong_kind, "gzip": gzip, "huge": huge, "long_length": long_length, "short_length": short_length,
    "stale": stale, "split": split, "garbage_sse": garbage_sse, "sse_error": sse_error, "no_done": no_done,
    "comments": comments, "endless": endless, "huge_event": huge_event, "die_fin": die_fin, "die_rst": die_rst,
    "stall": stall,
}  # fmt: skip
