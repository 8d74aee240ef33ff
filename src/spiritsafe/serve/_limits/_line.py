"""One connection to Redis, shared by all requests of a process: commands are sent as they come and answered in order.

The parser is hiredis. redis-py's client was measured at 150 to 190 µs of CPU a call here, this at 15 to 35: a request
makes two calls, and the rest of the guard's work on it is of that size.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from spiritsafe.errors import BadInput, SpiritsafeError

__all__ = ["Away", "Line", "ServerError"]

_CONNECT_S = 1.0
_NOT_NOW = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "OOM", "MISCONF", "NOREPLICAS", "UNKILLABLE")


class Away(SpiritsafeError):
    """Redis does not answer in time, or cannot do its work now. What was asked may have been done all the same."""


class ServerError(Exception):
    """Redis answered with an error; the message is its own."""


class Line:
    """A connection that is made by `connect`, and lost for good on the first fault; then `connect` makes another.

    url: redis://, rediss:// or unix://; a password that is not in it is read from REDISCLI_AUTH.
    timeout_s: silence after which the connection counts as lost.  on_connect: run before anything else may be asked.
    on_lost: called when a connection is lost.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float,
        on_connect: Callable[[], Awaitable[None]],
        on_lost: Callable[[], None],
    ) -> None:
        from redis.asyncio.connection import parse_url

        try:
            self._where: dict[str, Any] = dict(parse_url(url))
        except ValueError as error:
            raise BadInput(f"state.limits: not a Redis URL ({error}); write redis://HOST:6379/0") from None
        self._timeout_s, self._on_connect, self._on_lost = timeout_s, on_connect, on_lost
        self._wire: _Wire | None = None
        self._ready = False

    @property
    def connected(self) -> bool:
        return self._ready and self._wire is not None and self._wire.open

    @property
    def name(self) -> str:
        """Where it leads, without secrets."""
        where = self._where
        return str(where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}")

    async def connect(self) -> None:
        """Connect, log in, and run `on_connect`.

        Raises:
            Away: it cannot be reached, or refuses us.
        """
        self.close()
        try:
            async with asyncio.timeout(_CONNECT_S):
                self._wire = await self._open()
                await self._log_in()
                await self._on_connect()
        except (OSError, TimeoutError, ServerError) as error:
            self.close()
            raise Away(f"Redis at {self.name}: {error or type(error).__name__}") from None
        except BaseException:
            self.close()
            raise
        self._ready = True

    async def call(self, *words: str | bytes | int) -> Any:
        """Send a command; its answer, with text as bytes.

        Raises:
            Away: no answer came, or Redis cannot do it now.
            ServerError: Redis refuses it.
        """
        wire = self._wire
        if wire is None or not wire.open:
            raise Away(f"Redis at {self.name}: not connected")
        answer = await wire.ask(words)
        if isinstance(answer, wire.error):
            text = str(answer)
            if text.startswith(_NOT_NOW):
                wire.abort()  # the next connection may lead to a server that can
                raise Away(f"Redis at {self.name}: {text}")
            raise ServerError(text)
        return answer

    def close(self) -> None:
        self._ready = False
        if self._wire is not None:
            self._wire.abort()
            self._wire = None

    def _lost(self, wire: _Wire) -> None:
        if wire is self._wire and self._ready:
            self._ready = False
            self._on_lost()

    async def _open(self) -> _Wire:
        loop, where = asyncio.get_running_loop(), self._where

        def make() -> _Wire:
            return _Wire(self.name, self._timeout_s, self._lost)

        if "path" in where:
            return (await loop.create_unix_connection(make, where["path"]))[1]
        host, port = where.get("host", "localhost"), where.get("port", 6379)
        tls = where.get("connection_class") is not None and "SSL" in where["connection_class"].__name__
        return (await loop.create_connection(make, host, port, ssl=_tls(where) if tls else None))[1]

    async def _log_in(self) -> None:
        password = self._where.get("password") or os.environ.get("REDISCLI_AUTH")
        user = self._where.get("username")
        if password:
            await self.call("AUTH", *([user] if user else []), password)
        if database := self._where.get("db"):
            await self.call("SELECT", database)


class _Wire(asyncio.Protocol):
    """The connection itself."""

    def __init__(self, name: str, timeout_s: float, lost: Callable[[_Wire], None]) -> None:
        import hiredis

        self._name, self._timeout_s, self._lost = name, timeout_s, lost
        self._reader, self._pack = hiredis.Reader(), hiredis.pack_command
        self.error: type[Exception] = hiredis.ReplyError
        self._garbage = (hiredis.ProtocolError, IndexError)  # IndexError: an answer nobody asked for
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._loop = asyncio.get_running_loop()
        self._watch: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None

    def ask(self, words: tuple[Any, ...]) -> asyncio.Future[Any]:
        assert self._transport is not None
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((future, time.monotonic()))
        self._transport.write(self._pack(words))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._look)
        return future

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not False:
                future, _ = self._waiting.popleft()
                if not future.done():
                    future.set_result(answer)
        except self._garbage:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is None:
            return
        self._transport = None
        if self._watch is not None:
            self._watch.cancel()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(Away(f"Redis at {self._name}: the connection broke"))
        self._lost(self)

    def _look(self) -> None:
        """The oldest question decides: answers come in order."""
        self._watch = None
        if self._waiting:
            left = self._waiting[0][1] + self._timeout_s - time.monotonic()
            if left <= 0:
                self.abort()
            else:
                self._watch = self._loop.call_later(left, self._look)


def _tls(where: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=where.get("ssl_ca_certs"))
    if str(where.get("ssl_cert_reqs", "required")).lower() in ("none", "0"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate := where.get("ssl_certfile"):
        context.load_cert_chain(certificate, where.get("ssl_keyfile"))
    return context
