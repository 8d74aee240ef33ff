"""Server-sent events: written, and read from chunks cut anywhere (WHATWG HTML, §9.2)."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

__all__ = ["SSE_DONE", "SseEvent", "SseParser", "sse_event"]

SSE_DONE = b"data: [DONE]\n\n"
_LINE_END = re.compile("\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event. OpenAI's streams use `data` only; the last one is "[DONE]"."""

    data: str
    event: str = "message"
    id: str = ""


def sse_event(data: Mapping[str, Any]) -> bytes:
    """An event that carries a JSON object."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


class SseParser:
    """Incremental reader: `feed` bytes as they arrive, get the events they complete."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._data: list[str] = []
        self._event = self._id = ""
        self._begun = False

    def feed(self, raw: bytes) -> list[SseEvent]:
        """Events complete with these bytes. An event without its blank line is not complete."""
        text = self._decoder.decode(raw)
        if not self._begun and text:
            text, self._begun = text.removeprefix("\ufeff"), True
        self._text += text
        # a \r at the end may be the first half of \r\n
        whole = self._text[:-1] if self._text.endswith("\r") else self._text
        lines = _LINE_END.split(whole)
        self._text = lines.pop() + self._text[len(whole) :]
        return [event for line in lines if (event := self._line(line))]

    def _line(self, line: str) -> SseEvent | None:
        if not line:
            event = SseEvent("\n".join(self._data), self._event or "message", self._id) if self._data else None
            self._data, self._event = [], ""
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None
