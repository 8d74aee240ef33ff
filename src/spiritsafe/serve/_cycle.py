"""A request and its answer on a client's connection: uvicorn's, with an answer's head and the body that follows it in
one write. uvicorn looks at each header with two regular expressions and writes head and body apart, which took a tenth
of the guard's time for a short reply."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from spiritsafe.wire import ApiError

__all__ = ["STOPPED", "WHOLE", "Cycle"]

WHOLE: Final = "spiritsafe.whole"
"""Set in a scope once the request's body has arrived whole: nobody need wait for it with a clock."""

STOPPED: Final = ApiError(503, "the guard stopped before this was answered; try again", code="stopping")
"""What a client is told whose reply was cut in a shutdown."""

_NO_BODY = (204, 304)


class Cycle(RequestResponseCycle):
    """Header names must be in lower case, as ASGI says."""

    _head = b""

    async def send(self, message: Any) -> None:
        """Send a part of the answer. Its head waits for the first part of its body.

        Raises:
            RuntimeError: the application does not speak ASGI, or a header would break the answer in two.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started and kind == "http.response.start":
            self.response_started, self.waiting_for_100_continue = True, False
            self._head = self._head_of(message["status"], message.get("headers", ()))
        elif self.response_started and not self.response_complete and kind == "http.response.body":
            self._body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r}")

    async def send_500_response(self) -> None:
        """What is cut in a shutdown, before it was answered."""
        body = STOPPED.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": STOPPED.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _head_of(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        parts = [STATUS_LINE[status]]
        closes, lines = False, 2
        for name, value in headers:
            lines += 1
            parts += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self.expected_content_length, self.chunked_encoding = int(value), False
            elif name == b"connection":
                closes = b"close" in value.lower()
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            lines += 1
            parts.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _NO_BODY:
            self.chunked_encoding = True
            lines += 1
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            raise RuntimeError("a header holds a line break")
        return head

    def _body(self, body: bytes, more: bool) -> None:
        head, self._head = self._head, b""
        if self.scope["method"] == "HEAD":
            self.expected_content_length, body = 0, b""
        elif self.chunked_encoding:
            end = b"" if more else b"0\r\n\r\n"
            body = b"%x\r\n%b\r\n%b" % (len(body), body, end) if body else end
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (self.expected_content_length and not more):
                raise RuntimeError("the body is not as long as its content-length says")
        if head or body:
            self.transport.write(head + body if head else body)
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()
