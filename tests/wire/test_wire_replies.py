"""Local answers are stored in the same format as an API's, and come back unchanged."""

from __future__ import annotations

import numpy as np

from spiritsafe.records import Reply, SparseLogprobs, Usage
from spiritsafe.wire import completion_bytes, parse_completion, snippet

INF = float("-inf")


def same(a: SparseLogprobs | None, b: SparseLogprobs | None) -> None:
    assert a is not None and b is not None
    np.testing.assert_array_equal(a.chosen, b.chosen)
    np.testing.assert_array_equal(a.top, b.top)
    assert (a.ids is None) == (b.ids is None)
    if a.ids is not None and b.ids is not None:
        np.testing.assert_array_equal(a.ids, b.ids)
    assert (a.token_bytes, a.top_bytes) == (b.token_bytes, b.top_bytes)


def test_replies_with_ids_with_bytes_and_with_both_survive() -> None:
    chosen = np.asarray([-0.1234567, INF], np.float32)
    top = np.asarray([[-0.1234567, -3.3], [-1e-7, INF]], np.float32)
    ids = np.asarray([[7, 0], [49151, -1]], np.int32)
    token_bytes, top_bytes = (b"\xff", b""), ((b"\xff", b"a"), (b"token", b""))
    replies = (
        Reply("by id", "stop", (7, 49151), SparseLogprobs(chosen, top, ids)),
        Reply("by bytes", "length", None, SparseLogprobs(chosen, top, None, token_bytes, top_bytes)),
        Reply("both", "content_filter", (1,), SparseLogprobs(chosen, top, ids, token_bytes, top_bytes)),
        Reply("", "stop"),
    )
    back, usage, model, *_ = parse_completion(completion_bytes(replies, Usage(5, 4, 3, 2), "m"))
    assert (usage, model) == (Usage(5, 4, 3, 2), "m")
    for before, after in zip(replies, back, strict=True):
        assert (before.text, before.finish_reason, before.token_ids) == (
            after.text,
            after.finish_reason,
            after.token_ids,
        )
    for before, after in zip(replies[:3], back[:3], strict=True):
        same(before.logprobs, after.logprobs)
    assert back[3].logprobs is None


def test_choices_come_in_the_order_of_their_index() -> None:
    raw = b'{"choices": [{"index": 1, "message": {"content": "b"}}, {"index": 0, "message": {"content": "a"}}]}'
    assert [r.text for r in parse_completion(raw)[0]] == ["a", "b"]


def test_content_parts_are_joined() -> None:
    raw = b'{"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]}'
    assert parse_completion(raw)[0][0].text == "ab"


def test_a_snippet_is_one_short_printable_line() -> None:
    shown = snippet(b"\x1b[31m<html>\r\n" + b"x" * 500)
    assert len(shown) < 140 and shown.isprintable() and "\\x1b" not in shown
