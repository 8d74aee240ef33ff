"""HTTP/1.1 to upstreams: kept-alive connections parsed by httptools, as many as there are requests.

Why not aiohttp: its own work per request is more than the rest of the guard's, and its tail is long
(design/guard.md).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

from spiritsafe.serve._connection import Connection, Reply, Timeouts, UpstreamFailure

__all__ = ["Headers", "Pool"]

_IDLE_S = 4.0  # shorter than the 5 s after which common servers close: an idle connection we use is still open

Headers = Sequence[tuple[bytes, bytes]]


class Pool:
    """Connections to one server.

    tls: whom to believe where the URL is https; the system's authorities unless given.
    """

    def __init__(self, base_url: str, timeouts: Timeouts, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(base_url)
        self._host = parts.hostname or ""
        secure = parts.scheme == "https"
        self._port = parts.port or (443 if secure else 80)
        self._tls = (tls or ssl.create_default_context()) if secure else None
        self._prefix = parts.path.rstrip("/").encode()
        self._host_header = parts.netloc.rpartition("@")[2].encode()
        self._timeouts = timeouts
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._closed = False

    async def request(
        self, method: bytes, path: bytes, headers: Headers, body: bytes = b"", *, absolute: bool = False
    ) -> Reply:
        """Send a request; returns when the reply's head has arrived.

        path: below the base URL's path, or from the server's root if `absolute`.

        Raises:
            UpstreamFailure: no head arrived.
        """
        lines = [method, b" ", path if absolute else self._prefix + path, b" HTTP/1.1\r\nhost: ", self._host_header]
        for name, value in headers:
            lines += (b"\r\n", name, b": ", value)
        lines += (b"\r\ncontent-length: ", str(len(body)).encode(), b"\r\n\r\n", body)
        connection = self._take() or await self._connect()
        return await connection.ask(b"".join(lines))

    async def aclose(self) -> None:
        """Close every connection; replies under way fail."""
        self._closed = True
        for connection in list(self._all):
            connection.give_up()
        await asyncio.sleep(0)

    def _take(self) -> Connection | None:
        oldest = asyncio.get_running_loop().time() - _IDLE_S
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others may age and go
            if connection.usable and connection.idle_since > oldest:
                return connection
            connection.give_up()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeouts.connect):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, self._timeouts), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise UpstreamFailure("connect", "did not accept a connection in time") from None
        except (OSError, ssl.SSLError) as error:
            raise UpstreamFailure("connect", f"cannot be reached ({error.strerror or type(error).__name__})") from None
        return connection

    def opened(self, connection: Connection) -> None:
        self._all.add(connection)

    def gone(self, connection: Connection) -> None:
        self._all.discard(connection)

    def free(self, connection: Connection) -> None:
        if self._closed:
            connection.give_up()
        else:
            self._idle.append(connection)
            if len(self._idle) > 16 and self._idle[0].idle_since < connection.idle_since - _IDLE_S:
                self._idle.pop(0).give_up()
