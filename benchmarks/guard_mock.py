"""A mock upstream for the guard: OpenAI's JSON and SSE over a bare asyncio protocol, as lean as Python allows.

What it does is said in the path before /v1, so that one mock serves many upstreams at once:

    http://127.0.0.1:PORT/v1                              an answer of 40 tokens at once
    http://127.0.0.1:PORT/chunks=51,interval_ms=10/v1     streams of 51 chunks, 10 ms apart
    http://127.0.0.1:PORT/fault=die_rst,delay_ms=20/v1    see guard_mock_faults.py

Chat, completions, responses and embeddings are answered; /models, /health and /stats (requests by path) too. `--log`
appends one JSON line a completion asked for: mode, path, headers, body, tokens. Prints its port once it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from guard_mock_faults import FAULTS  # noqa: E402
from guard_mock_replies import Call, chunked, head, mode_of  # noqa: E402

_PATH = re.compile(r"^(?:/(?P<mode>[^/]*=[^/]*))?(?:/v1)?/(?P<kind>[a-z_/]+)$")
_KINDS = ("chat/completions", "completions", "responses", "embeddings")


class Connection(asyncio.Protocol):
    """Reads requests (by length or chunked), one at a time, and answers them."""

    def __init__(self, mock: Mock) -> None:
        self.mock, self.buffer, self.task = mock, b"", None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.mock.counts["connections"] += 1

    def connection_lost(self, error: Exception | None) -> None:
        if self.task is not None:
            self.task.cancel()
            self.mock.counts["gone"] += 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.task is None:
            self._next()

    def _next(self) -> None:
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            lines = self.buffer[:end].decode("latin-1").split("\r\n")
            headers = dict(map(_header, lines[1:]))
            if "chunked" in headers.get("transfer-encoding", ""):
                read = _dechunk(self.buffer, end + 4)
                if read is None:
                    return
                body, self.buffer = read
            else:
                size = end + 4 + int(headers.get("content-length", 0))
                if len(self.buffer) < size:
                    return
                body, self.buffer = self.buffer[end + 4 : size], self.buffer[size:]
            self._answer(lines[0].split(" ")[1].partition("?")[0], headers, body)
            if self.task is not None:
                return

    def _answer(self, path: str, headers: dict[str, str], raw: bytes) -> None:
        found = _PATH.match(path)
        kind = found["kind"] if found else ""
        if kind not in _KINDS:
            body = self.mock.other(path, kind)
            self.transport.write(head(200 if body is not None else 404, length=len(body or b"{}")) + (body or b"{}"))
            return
        self.mock.counts[path] += 1
        assert found is not None
        call = Call.read(mode_of(found["mode"] or ""), kind, raw, headers)
        if self.mock.log is not None:
            self.mock.write(path, call)
        mode = call.mode
        if not call.stream and not mode.fault and not mode.delay_ms and mode.status == 200 and not mode.split:
            self.transport.write(self.mock.whole(call))
            return
        self.task = asyncio.get_running_loop().create_task(self._take_time(call))

    async def _take_time(self, call: Call) -> None:
        mode = call.mode
        try:
            if mode.delay_ms:
                await asyncio.sleep(mode.delay_ms / 1000)
            if mode.fault:
                await FAULTS[mode.fault](self, call)
            elif mode.status != 200:
                error = {"message": "the mock was told to fail", "type": "mock", "param": None, "code": "told"}
                await self.reply(mode.status, {"error": error}, retry_after="7")
            elif call.stream:
                await self.stream(call, [*call.events(), b"data: [DONE]\n\n"])
            else:
                await self.reply(200, call.whole())
        except ConnectionError:
            return
        self.task = None
        if not self.transport.is_closing():
            self._next()

    async def reply(self, status: int, body: Any, content_type: str = "application/json", **headers: str) -> None:
        """A whole answer; `body` is bytes or what JSON is made of."""
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        await self.send(head(status, content_type, len(raw), **headers) + raw)

    async def stream(self, call: Call, events: list[bytes], *, end: bool = True) -> None:
        """Events in chunked framing at the mode's pace; without `end` the last chunk stays out."""
        await self.send(head(200, "text/event-stream"))
        pause = call.mode.interval_ms / 1000
        loop = asyncio.get_running_loop()
        due = loop.time()
        for event in events:
            if pause:
                due += pause
                await asyncio.sleep(due - loop.time())
            await self.send(chunked(event))
        if end:
            await self.send(b"0\r\n\r\n")

    async def send(self, data: bytes) -> None:
        if self.transport.is_closing():
            raise ConnectionResetError
        self.transport.write(data)


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip()


def _dechunk(data: bytes, at: int) -> tuple[bytes, bytes] | None:
    """(body, what follows), or None while it is incomplete."""
    parts = []
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end].split(b";")[0], 16)
        at = end + 2 + size + 2
        if len(data) < at:
            return None
        if size == 0:
            return b"".join(parts), data[at:]
        parts.append(data[end + 2 : at - 2])
    return None


class Mock:
    def __init__(self, log: Path | None) -> None:
        self.counts: Counter[str] = Counter()
        self.made: dict[tuple[Any, ...], bytes] = {}
        self.log = None if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def other(self, path: str, kind: str) -> bytes | None:
        if kind == "models":
            return orjson.dumps({"object": "list", "data": [{"id": "mock", "object": "model", "created": 0, "owned_by": "mock"}]})  # noqa: E501  # fmt: skip
        if path == "/stats":
            return orjson.dumps(self.counts)
        return b"{}" if "health" in path else None

    def whole(self, call: Call) -> bytes:
        """Head and body of an answer, made once for all calls that get the same."""
        asked = call.body.get("input")
        key = (call.mode, call.kind, call.model, call.n, call.tokens, str(call.extra), len(asked) if asked else 0)
        made = self.made.get(key)
        if made is None:
            raw = orjson.dumps(call.whole())
            made = self.made[key] = head(200, length=len(raw)) + raw
        return made

    def write(self, path: str, call: Call) -> None:
        line = {"path": path, "headers": call.headers, "body": call.body, "tokens": call.tokens * call.n}
        assert self.log is not None
        os.write(self.log, orjson.dumps(line) + b"\n")


async def main(port: int, log: Path | None) -> None:
    mock = Mock(log)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(mock), "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    uvloop.run(main(given.port, given.log))
