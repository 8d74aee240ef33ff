"""ASGI, spoken directly: reading bodies within bounds, sending JSON, noticing that a client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from spiritsafe.serve._cycle import WHOLE
from spiritsafe.wire import ApiError

__all__ = [
    "ClientGone",
    "Receive",
    "Refusal",
    "Scope",
    "Send",
    "header",
    "read_body",
    "send_error",
    "send_json",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

_DROP_S, _DROP_BYTES = 2.0, 64 << 20  # of a body that is too large
_JSON = (b"content-type", b"application/json")


class Refusal(ApiError):
    """A limit says no. headers: what the answer carries.  rule: which limit, for metrics and logs."""

    def __init__(self, error: ApiError, headers: Headers, rule: str) -> None:
        super().__init__(error.status, error.message, param=error.param, code=error.code)
        self.headers, self.rule = headers, rule


class ClientGone(Exception):
    """The client closed the connection; nobody reads an answer."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a request header; None if it is absent."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


async def read_body(scope: Scope, receive: Receive, limit: int, seconds: float) -> bytes:
    """The whole request body.

    Raises:
        ApiError: 413 beyond `limit` bytes, 408 if it takes longer than `seconds`, 415 if it is compressed.
        ClientGone: the client left.
    """
    encoding = header(scope, b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise ApiError(415, "compressed bodies are not accepted; send plain JSON")
    length = header(scope, b"content-length")
    if length is not None and int(length) > limit:
        if header(scope, b"expect") is None:  # a client that asks first has sent nothing yet
            await _drop(receive)
        raise _too_large(limit)
    message = await (_arrived(receive) if WHOLE in scope else _next(receive, seconds))
    if not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    deadline = time.monotonic() + seconds
    parts = [message.get("body", b"")]
    size = len(parts[0])
    while message.get("more_body", False):
        message = await _next(receive, deadline - time.monotonic())
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            parts.clear()
            await _drop(receive)
            raise _too_large(limit)
    return b"".join(parts)


async def _drop(receive: Receive) -> None:
    """Read on for a while: a client that is still sending when its connection closes gets no answer, only a reset."""
    deadline, left = time.monotonic() + _DROP_S, _DROP_BYTES
    with contextlib.suppress(ApiError):
        while left > 0:
            message = await _next(receive, deadline - time.monotonic())
            if not message.get("more_body", False):
                return
            left -= len(message.get("body", b""))


async def _next(receive: Receive, seconds: float) -> MutableMapping[str, Any]:
    try:
        async with asyncio.timeout(max(seconds, 0)):
            message = await receive()
    except TimeoutError:
        raise ApiError(408, "the request's body did not arrive in time; send it faster or smaller") from None
    return _present(message)


async def _arrived(receive: Receive) -> MutableMapping[str, Any]:
    """What is there already: no clock, which would cost more than the rest of it."""
    return _present(await receive())


def _present(message: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit / 2**20:g} MiB; send less in one request")


async def send_json(send: Send, body: bytes, status: int = 200, headers: Headers = ()) -> None:
    """One whole JSON answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError, headers: Headers = ()) -> None:
    """An error in OpenAI's shape. After 408 and 413 the connection closes: the rest of the body is not read."""
    extra = [(b"connection", b"close")] if error.status in (408, 413) else []
    if isinstance(error, Refusal):
        extra += error.headers
    if error.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    await send_json(send, error.body(), error.status, [*headers, *extra])


class DisconnectWatch:
    """`async with`: cancels the block's work, and raises `ClientGone`, when the client leaves. Starts watching only
    after `after` seconds, since most answers are quicker than a task is worth."""

    def __init__(self, receive: Receive, after: float = 0.05) -> None:
        self._receive, self._after = receive, after
        self._watcher: asyncio.Task[None] | None = None
        self._gone = False

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._handle = loop.call_later(self._after, self._start)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._handle.cancel()
        watcher, self._watcher = self._watcher, None  # a task that knows who knows it is a cycle
        if watcher is not None:
            watcher.cancel()
        if self._gone:
            self._task.uncancel()
            if kind is None or kind is asyncio.CancelledError:
                raise ClientGone from None

    def _start(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()
