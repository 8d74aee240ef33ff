"""Logs: one JSON line a request and an event, on stderr. Never prompts, keys or headers; never in a request's way.

Lines are written by a thread, many at once, so that a reader of stderr that stops reading delays nobody: what does not
fit the queue is dropped and counted. They are formatted where they arise: a thread that does it takes the interpreter
from the event loop again and again, which costs several times the formatting.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from spiritsafe.errors import SpiritsafeError
from spiritsafe.serve._config import LogsConfig

__all__ = ["Logs"]

_MOST_WAITING = 20_000
_AT_ONCE = 4096
_EVERY_S = 0.1
_CLOSE_S = 2.0
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_FRAMES = 30

_HIDDEN = b"[hidden]"
# Should a secret ever be passed in, it stops here. An API key's public id stays: it says which key to revoke.
# A pattern is tried only where one of its words occurs, which is quicker to know.
_SECRETS: tuple[tuple[tuple[bytes, ...], re.Pattern[bytes], bytes], ...] = (
    ((b"_",), re.compile(rb"(_[0-9A-Za-z]{12}_)[0-9A-Za-z]{20,}"), rb"\1" + _HIDDEN),
    ((b"bearer", b"basic"), re.compile(rb"(?i)\b(bearer|basic)(?:\s|\\t)+[^\s\"'\\,]+"), rb"\1 " + _HIDDEN),
    (
        (b"sk-", b"hf_", b"ghp_", b"github_pat_"),
        re.compile(rb"\b(sk-|hf_|ghp_|github_pat_)[A-Za-z0-9_-]{12,}"),
        rb"\1" + _HIDDEN,
    ),
    ((b"://",), re.compile(rb"(://[^/\s:@\"]*):[^/\s@\"]+@"), rb"\1:" + _HIDDEN + b"@"),
)

Line = tuple[float, str, str, Mapping[str, Any]]


class Logs:
    """The log of one process. `request` and `event` may be called from any thread and never block.

    dropped: lines that did not fit, so far.
    """

    def __init__(self, config: LogsConfig, *, out: int | None = None, hide: Iterable[str] = ()) -> None:
        """out: file descriptor; stderr unless given. A terminal gets plain lines.

        hide: secrets to strike out wherever they appear, such as upstream API keys.
        """
        self._requests, self._level = config.requests, _LEVELS[config.level]
        self._out = sys.stderr.fileno() if out is None else out
        self._format: Callable[[Line], bytes] = _plain if os.isatty(self._out) else _json
        self._hide = tuple(secret.encode() for secret in hide if len(secret) >= 8)
        self._waiting: deque[bytes] = deque()
        self.dropped = 0
        self._told = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="logs", daemon=True)
        self._thread.start()

    def request(
        self,
        *,
        request_id: str,
        status: int,
        ms: float,
        account: str | None = None,
        key_id: str | None = None,
        kind: str | None = None,
        model: str | None = None,
        upstream: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        stream: bool = False,
        outcome: str | None = None,
        rule: str | None = None,
    ) -> None:
        """A request is over. outcome: the ledger's status.  rule: what refused it.  key_id: the key's public part."""
        if self._requests != "all" and (self._requests == "none" or status < 400):
            return
        fields = {
            "request_id": request_id,
            "account": account,
            "key_id": key_id,
            "kind": kind,
            "model": model,
            "status": status,
            "ms": ms,
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "stream": stream,
            "upstream": upstream,
            "outcome": outcome,
            "rule": rule,
        }
        self._put((time.time(), "info" if status < 500 else "error", "request", fields))

    def event(self, event: str, level: str = "info", **fields: Any) -> None:
        """Something else happened. Fields are for operators: no texts of customers, no secrets."""
        if _LEVELS[level] >= self._level:
            self._put((time.time(), level, event, fields))

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """While open, what the standard library's `logging` is told comes here too: ours as the level says, of other
        libraries (uvicorn, say) warnings and errors."""
        root, ours = logging.getLogger(), logging.getLogger("spiritsafe")
        handler = _Handler(self)
        before = root.level, ours.level
        root.addHandler(handler)
        root.setLevel(max(self._level, logging.WARNING))
        ours.setLevel(self._level)
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(before[0])
            ours.setLevel(before[1])

    def close(self) -> None:
        """Write what waits, for 2 seconds at most."""
        self._stop.set()
        self._thread.join(_CLOSE_S)

    def _put(self, line: Line) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            self.dropped += 1
        else:
            self._waiting.append(self._format(line))

    def _write_on(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._write_all()
        self._write_all()

    def _write_all(self) -> None:
        while self._waiting:
            lines = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            if not self._write(self._safe(b"".join(lines))):
                self.dropped += len(lines)
        if self.dropped > self._told:
            told = self.dropped
            line = (time.time(), "warning", "log_lines_dropped", {"lines": told - self._told, "so_far": told})
            if self._write(self._format(line)):
                self._told = told

    def _safe(self, lines: bytes) -> bytes:
        for secret in self._hide:
            lines = lines.replace(secret, _HIDDEN)
        lower = lines.lower()
        for words, pattern, instead in _SECRETS:
            if any(word in lower for word in words):
                lines = pattern.sub(instead, lines)
        return lines

    def _write(self, data: bytes) -> bool:
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except OSError:  # nobody reads, or the disk is full: there is no place left to say so
            return False
        return True


class _Handler(logging.Handler):
    """Turns log records into lines. Of an exception type and place are told: its message may quote a customer."""

    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception as error:  # a library's mistake; its arguments may be anything, so they are not shown
            message = f"{record.msg!s} (its arguments do not fit: {type(error).__name__})"
        fields: dict[str, Any] = {"logger": record.name, "message": message}
        if record.exc_info and record.exc_info[0] is not None:
            kind, raised, trace = record.exc_info
            fields["error"] = kind.__name__
            if isinstance(raised, SpiritsafeError):
                fields["because"] = str(raised)
            frames = traceback.extract_tb(trace)[-_FRAMES:]
            fields["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        self._logs._put((record.created, level if level in _LEVELS else "info", "log", fields))


def _json(line: Line) -> bytes:
    at, level, event, fields = line
    row = {"ts": datetime.fromtimestamp(at, UTC), "level": level, "event": event}
    row |= {key: value for key, value in fields.items() if value is not None}
    try:
        return orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)
    except TypeError:  # text that is no valid Unicode, or a key that is no text
        return orjson.dumps({_valid(k): _valid(v) for k, v in row.items()}, option=orjson.OPT_APPEND_NEWLINE)


def _plain(line: Line) -> bytes:
    at, level, event, fields = line
    shown = " ".join(f"{key}={_valid(value)}" for key, value in fields.items() if value is not None)
    text = f"{datetime.fromtimestamp(at, UTC):%H:%M:%S.%f} {level:7} {event} {shown}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text).encode() + b"\n"


def _valid(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()
