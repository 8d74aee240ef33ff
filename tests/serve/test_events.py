"""Splitting an upstream's stream: the same events as the full parser finds, wherever the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.serve._events import EventSplitter, RawEvent
from spiritsafe.wire import SseParser

lines = st.lists(
    st.one_of(
        st.builds(lambda v: f"data: {v}", st.text("ab{}:€ ", max_size=6)),
        st.builds(lambda v: f"data:{v}", st.text("ab", max_size=3)),
        st.builds(lambda v: f"event: {v}", st.text("xyz", min_size=1, max_size=3)),
        st.builds(lambda v: f": {v}", st.text("c", max_size=3)),
        st.just(""),
    ),
    max_size=20,
)


@given(lines, st.sampled_from(["\n", "\r\n", "\r"]), st.integers(1, 7))
def test_it_finds_what_the_parser_finds(lines: list[str], end: str, size: int) -> None:
    raw = "".join(line + end for line in [*lines, "data: last", "", "data: x"]).encode()
    pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
    parser, splitter = SseParser(), EventSplitter()
    expected = [(event.event, event.data) for piece in pieces for event in parser.feed(piece)]
    found = [event for piece in pieces for event in splitter.feed(piece)]
    assert [(event.name.decode() or "message", event.data.decode()) for event in found] == expected


@given(st.text("a\n{}"), st.text("xy", max_size=3))
def test_an_event_written_is_the_event_read(data: str, name: str) -> None:
    raw = RawEvent(name.encode(), b"").encode(data.encode())
    assert EventSplitter().feed(raw) == [RawEvent(name.encode(), data.encode())]


def test_an_endless_event_is_refused() -> None:
    splitter = EventSplitter()
    for _ in range(41):
        splitter.feed(b"x" * 100_000)
    with pytest.raises(ValueError, match="4 MiB"):
        splitter.feed(b"x" * 100_000)
