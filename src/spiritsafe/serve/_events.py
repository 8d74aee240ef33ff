"""An upstream's server-sent events as bytes: split where they end, so that most can go on as they came.

`wire.SseParser` reads events for a client; here they are passed on, and decoding and writing each again would be most
of a chunk's cost.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EventSplitter", "RawEvent"]

_LARGEST_EVENT = 4 << 20


class RawEvent(NamedTuple):
    """One event. name: its `event:` line, empty without one.  data: its data lines joined by newlines."""

    name: bytes
    data: bytes

    def encode(self, data: bytes) -> bytes:
        """The event with other data."""
        if b"\n" in data:
            data = data.replace(b"\n", b"\ndata: ")
        return b"event: %b\ndata: %b\n\n" % (self.name, data) if self.name else b"data: %b\n\n" % data


class EventSplitter:
    """Incremental: `feed` bytes as they arrive, get the events they complete (WHATWG HTML, §9.2)."""

    def __init__(self) -> None:
        self._rest = b""
        self._held_cr = b""

    def feed(self, raw: bytes) -> list[RawEvent]:
        """Events complete with these bytes; comments and events without data are left out.

        Raises:
            ValueError: an event grows beyond any sane size.
        """
        if not self._rest and not self._held_cr and (event := _one_event(raw)) is not None:
            return [event]
        if self._held_cr or b"\r" in raw:
            raw = self._held_cr + raw
            # a \r at the end may be the first half of \r\n
            self._held_cr = b"\r" if raw.endswith(b"\r") else b""
            raw = raw[: len(raw) - len(self._held_cr)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        text = self._rest + raw if self._rest else raw
        blocks = text.split(b"\n\n")
        self._rest = blocks.pop()
        if len(self._rest) > _LARGEST_EVENT:
            raise ValueError("an event is larger than 4 MiB")
        return [event for block in blocks if (event := _event(block)) is not None]

    @property
    def rest(self) -> bytes:
        """What has arrived of an event that is not complete."""
        return self._rest


def _one_event(raw: bytes) -> RawEvent | None:
    """What nearly every piece is: one whole event of one data line."""
    if raw.startswith(b"data: ") and raw.endswith(b"\n\n") and raw.count(b"\n") == 2 and b"\r" not in raw:
        return RawEvent(b"", raw[6:-2])
    return None


def _event(block: bytes) -> RawEvent | None:
    if block.startswith(b"data: ") and b"\n" not in block:
        return RawEvent(b"", block[6:])
    name, data = b"", []
    for line in block.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return RawEvent(name, b"\n".join(data)) if data else None
