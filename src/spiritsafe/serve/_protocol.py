"""uvicorn's HTTP protocol with what a public port needs besides: a clock on slow headers, a bound on their size, and
errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from spiritsafe.wire import ApiError

__all__ = ["GuardProtocol"]

_HEADERS_S = 10.0
_HEADERS_BYTES = 64 << 10


class _Corked:
    """A transport whose writes within one turn of the event loop leave together: uvicorn writes a reply's head and its
    body apart, and a system call for each is a good part of what a short reply costs."""

    __slots__ = ("_loop", "_transport", "_waiting")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting:
            data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
            self._waiting.clear()
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class GuardProtocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Corked(transport, self.loop)))
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            # a body that comes along with its head is bounded by the application, which knows its limit
            if self._head_bytes > _HEADERS_BYTES and b"\r\n\r\n" not in data[:_HEADERS_BYTES]:
                self._refuse(ApiError(431, "the request's headers are larger than 64 KiB; send fewer"))
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._in_head = True
        if self._head_timer is None:
            self._start_clock()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._stop_clock()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "this is not a valid HTTP/1.1 request"))

    def _start_clock(self) -> None:
        self._head_timer = self.loop.call_later(_HEADERS_S, self._too_slow)

    def _stop_clock(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(ApiError(408, "the request's headers did not arrive in time"))
        else:  # nothing was asked: a pool that keeps the connection would take an answer for its next request's
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer outside of any request, and close. A reply under way on this connection is cut instead."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = error.body()
            self.transport.write(
                b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (error.status, len(body), body)
            )
        self.transport.close()
