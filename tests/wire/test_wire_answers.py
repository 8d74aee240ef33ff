"""Answers and events on the wire."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.records import SparseLogprobs, Usage
from spiritsafe.wire import (
    SSE_DONE,
    SseParser,
    answer,
    answer_choice,
    chunk,
    chunk_choice,
    logprob_entries,
    parse_completion,
    sse_event,
)

LOGPROBS = SparseLogprobs(
    chosen=np.array([-0.5, -np.inf], np.float32),
    top=np.array([[-0.5, -1.5], [-0.25, -2.0]], np.float32),
    ids=np.array([[7, 8], [9, 10]], np.int32),
    token_bytes=(b"h", b"\xc3"),
    top_bytes=((b"h", b"i"), (b"\xa9", b"\xc3")),
)


def test_an_answer_is_read_back_by_the_client_side() -> None:
    choice = answer_choice(0, "hé", "stop", logprobs=logprob_entries(LOGPROBS, 2), token_ids=(7, 10))
    body = answer(request_id="r", created=1, model="m", choices=[choice], usage=Usage(3, 2))
    (reply,), usage, model, *_ = parse_completion(json.dumps(body).encode())
    assert (reply.text, reply.finish_reason, reply.token_ids, usage, model) == ("hé", "stop", (7, 10), Usage(3, 2), "m")
    assert reply.logprobs is not None
    assert reply.logprobs.token_bytes == LOGPROBS.token_bytes
    assert reply.logprobs.top_bytes == LOGPROBS.top_bytes
    np.testing.assert_array_equal(reply.logprobs.chosen, LOGPROBS.chosen)
    np.testing.assert_array_equal(reply.logprobs.top, LOGPROBS.top)


def test_tokens_can_go_by_their_ids() -> None:
    entries = logprob_entries(LOGPROBS, 1, token_ids=(7, 10))
    assert [entry["token"] for entry in entries] == ["token_id:7", "token_id:10"]
    assert [[alt["token"] for alt in entry["top_logprobs"]] for entry in entries] == [["token_id:7"], ["token_id:9"]]


def test_minus_infinity_stays_json() -> None:
    assert logprob_entries(LOGPROBS, 0)[1]["logprob"] == -9999.0


def test_usage_shows_in_chunks_only_when_asked_for() -> None:
    plain = chunk(request_id="r", created=1, model="m", choices=[chunk_choice(0, {"content": "x"})])
    assert "usage" not in plain
    asked = chunk(request_id="r", created=1, model="m", choices=[], usage=Usage(3, 2), show_usage=True)
    assert asked["usage"]["total_tokens"] == 5
    assert chunk(request_id="r", created=1, model="m", choices=[], show_usage=True)["usage"] is None


def test_events_survive_any_cut() -> None:
    raw = sse_event({"a": "é\n"}) + b": comment\r\n\r\nevent: x\r\ndata: 1\rdata: 2\r\n\r\n" + SSE_DONE
    whole = SseParser().feed(raw)
    assert [event.data for event in whole] == ['{"a":"é\\n"}', "1\n2", "[DONE]"]
    assert [event.event for event in whole] == ["message", "x", "message"]


@given(st.lists(st.text(max_size=8).filter(lambda s: s and not set(s) & set("\r\n\0")), max_size=5), st.data())
def test_the_parser_does_not_care_how_bytes_arrive(texts: list[str], data: st.DataObject) -> None:
    raw = "".join(f"data: {text}\r\n\r\n" for text in texts).encode("utf-8", "replace")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    parser, got = SseParser(), []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        got += parser.feed(raw[start:end])
    assert got == SseParser().feed(raw)
    assert len(got) == len(texts)


@pytest.mark.parametrize("raw", [b"data: half", b"data: half\n", b"data: x\r", b"\n\n", b"id: 5\n\n"])
def test_an_unfinished_or_empty_event_is_none(raw: bytes) -> None:
    assert SseParser().feed(raw) == []


def test_a_byte_order_mark_is_skipped() -> None:
    assert [event.data for event in SseParser().feed(b"\xef\xbb\xbfdata: x\n\n")] == ["x"]
