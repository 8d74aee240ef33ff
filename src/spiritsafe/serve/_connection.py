"""One HTTP/1.1 connection to an upstream, parsed by httptools: one request at a time, its reply as it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Literal, NamedTuple, Protocol, cast

import httptools

__all__ = ["Connection", "Owner", "Reply", "Timeouts", "UpstreamFailure"]

_HIGH_WATER, _LOW_WATER = 256 << 10, 64 << 10
_LARGEST_REPLY = 64 << 20
_LARGEST_HEAD = 64 << 10
_END_S = 1.0  # between a reply's last event and the end of its body


class UpstreamFailure(Exception):
    """An upstream brought no usable reply.

    kind: "connect": it was not reached, so asking another one is safe; "timeout": silence or too long;
        "broken": the connection ended early; "garbage": not HTTP, or a reply beyond any sane size.
    """

    def __init__(self, kind: Literal["connect", "timeout", "broken", "garbage"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Timeouts(NamedTuple):
    """Seconds: to connect, of silence, of a whole reply."""

    connect: float
    silence: float
    total: float


class Reply:
    """A reply whose head has arrived. Read it to its end, `finish` it or `close` it: each gives the connection up."""

    __slots__ = ("_connection", "headers", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes], connection: Connection) -> None:
        self.status, self.headers, self._connection = status, headers, connection

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamFailure: it does not arrive whole.
        """
        return await self._connection.whole()

    def next_piece(self) -> Awaitable[bytes | None]:
        """What has arrived of the body since the last piece; None after its end. Raises as `read`."""
        return self._connection.next_piece()

    def finish(self) -> None:
        """Nothing more of it is wanted, and it is about to end; its connection is kept if it does."""
        self._connection.let_end()

    def close(self) -> None:
        """Give up on what has not arrived: the upstream sees the connection close."""
        self._connection.give_up()


class Owner(Protocol):
    """Who keeps connections."""

    def opened(self, connection: Connection) -> None: ...
    def free(self, connection: Connection) -> None: ...
    def gone(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, pool: Owner, timeouts: Timeouts) -> None:
        self._pool, self._timeouts = pool, timeouts
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.idle_since = 0.0
        self._parser: httptools.HttpResponseParser | None = None
        self._busy = self._complete = self._paused = self._ending = False
        self._failure: UpstreamFailure | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        transport = self._transport
        return transport is not None and not transport.is_closing() and self._failure is None

    async def ask(self, raw: bytes) -> Reply:
        self._parser = httptools.HttpResponseParser(self)
        self._head: dict[bytes, bytes] = {}
        self._head_bytes = self._size = self._buffered = 0
        self._status = 0
        self._pieces: list[bytes] = []
        self._busy, self._complete, self._whole, self._ending = True, False, False, False
        self._until_close = self._keep = False
        now = self._loop.time()
        self._deadline, self._last = now + self._timeouts.total, now
        self._timer = self._loop.call_at(min(now + self._timeouts.silence, self._deadline), self._check_time)
        assert self._transport is not None
        self._transport.write(raw)
        try:
            while not self._status and self._failure is None:
                await self._wait()
        except asyncio.CancelledError:
            self.give_up()
            raise
        if not self._status:
            raise cast(UpstreamFailure, self._failure)
        return Reply(self._status, self._head, self)

    async def whole(self) -> bytes:
        try:
            self._whole = True
            while not self._complete and self._failure is None:
                if self._size > _LARGEST_REPLY:
                    self._fail("garbage", f"sent more than {_LARGEST_REPLY >> 20} MiB")
                    break
                self._resume()
                await self._wait()
        except asyncio.CancelledError:
            self.give_up()
            raise
        if self._failure is not None:
            raise self._failure
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._release()
        return body

    async def next_piece(self) -> bytes | None:
        try:
            while not self._pieces and not self._complete and self._failure is None:
                await self._wait()
        except asyncio.CancelledError:
            self.give_up()
            raise
        if self._pieces:
            piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self._buffered = 0
            self._resume()
            return piece
        if self._failure is not None:
            raise self._failure
        self._release()
        return None

    def let_end(self) -> None:
        if not self._busy:
            return
        if self._complete:
            self._release()
            return
        self._ending = True
        self._stop_timer()
        self._timer = self._loop.call_later(_END_S, self.give_up)

    def give_up(self) -> None:
        self._stop_timer()
        if self._busy and self._failure is None:
            self._failure = UpstreamFailure("broken", "was closed by the guard")
        self._busy = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if not self._busy:  # nobody asked
            self.give_up()
            return
        self._last = self._loop.time()
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._complete:
                self._keep = False
            else:
                self._fail("garbage", f"does not speak HTTP ({error})")
        if self._buffered > _HIGH_WATER and not (self._whole or self._paused or self._complete):
            self._paused = True
            cast(asyncio.Transport, self._transport).pause_reading()
        if self._ending and self._complete:
            self._release()
        self._wake()

    def eof_received(self) -> bool:
        if self._busy and not self._complete and self._status and self._until_close:
            self._complete, self._keep = True, False
            self._wake()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.gone(self)
        self._parser = None  # it holds this connection: a cycle that only the collector would find
        if self._busy and not self._complete:
            if self._status and self._until_close and error is None:
                self._complete, self._keep = True, False
                self._wake()
            else:
                self._fail("broken", "closed the connection before its reply was whole")

    # httptools

    def on_message_begin(self) -> None:
        if self._complete:  # more than one reply to one request: none of it is ours
            raise ValueError("an answer nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _LARGEST_HEAD:
            raise ValueError("headers too large")
        self._head[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and the like: the reply is still to come
            self._head.clear()
            return
        self._status = status
        self._until_close = b"content-length" not in self._head and b"transfer-encoding" not in self._head

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._size += len(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self._status:
            assert self._parser is not None
            self._complete = True
            self._keep = self._parser.should_keep_alive()

    # inside

    def _wait(self) -> asyncio.Future[None]:
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _resume(self) -> None:
        if self._paused and (self._whole or self._buffered < _LOW_WATER):
            self._paused = False
            cast(asyncio.Transport, self._transport).resume_reading()

    def _release(self) -> None:
        if not self._busy:
            return
        self._busy = False
        self._stop_timer()
        if self._keep and self.usable and not self._paused:
            self.idle_since = self._loop.time()
            self._pool.free(self)
        else:
            self.give_up()

    def _check_time(self) -> None:
        now = self._loop.time()
        if now >= self._deadline:
            self._fail("timeout", f"took longer than {self._timeouts.total:g} s")
        elif not self._paused and now - self._last >= self._timeouts.silence:
            self._fail("timeout", f"was silent for {self._timeouts.silence:g} s")
        else:
            last = now if self._paused else self._last
            self._timer = self._loop.call_at(min(last + self._timeouts.silence, self._deadline), self._check_time)

    def _fail(self, kind: Literal["timeout", "broken", "garbage"], message: str) -> None:
        if self._failure is None:
            self._failure = UpstreamFailure(kind, message)
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
