"""No field that is not allowed leaves, at any depth of any shape of reply, whole or in pieces."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asks import jsons
from spiritsafe.serve._reply_filter import _ENGINE, _LOGPROBS, ReplyFilter, Showing
from spiritsafe.serve._responses_filter import ResponsesFilter
from spiritsafe.serve._thinking import Start

SECRET = "SECRET"
ENTRY = {"token": "a", "logprob": -0.12345, "bytes": [97], "id": 5, "top_logprobs": [
    {"token": t, "logprob": v, "bytes": None, "token_id": 1} for t, v in (("b", -3.25), ("a", -0.12345), ("c", -2.5))
]}  # fmt: skip


def chat(**more: Any) -> dict[str, Any]:
    message = {
        "role": "assistant",
        "content": "<think>SECRET</think>shown",
        "reasoning_content": SECRET,
        "reasoning": SECRET,
    }
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": [copy.deepcopy(ENTRY)]}}
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 7}}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage, **more}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}


def completion() -> dict[str, Any]:
    logprobs = {
        "tokens": ["a", "b"], "token_logprobs": [-0.5, None], "text_offset": [0, 1],
        "top_logprobs": [{"a": -0.5, "b": -1.25, "c": -3.0}, None],
    }  # fmt: skip
    choice = {"index": 0, "text": "<think>SECRET</think>shown", "finish_reason": "stop", "logprobs": logprobs}
    return {"id": "x", "object": "text_completion", "choices": [choice]}


def response() -> dict[str, Any]:
    text = {
        "type": "output_text",
        "text": "<think>SECRET</think>shown",
        "annotations": [],
        "logprobs": [copy.deepcopy(ENTRY)],
    }
    return {
        "id": "r", "object": "response", "reasoning": {"effort": "low", "summary": None, "content": SECRET},
        "tools": [{"type": "function", "name": "f", "parameters": {"properties": {"metrics": {}, "logprobs": {}}}}],
        "top_logprobs": 2, "usage": {"input_tokens": 1, "output_tokens_details": {"reasoning_tokens": 7}},
        "output": [
            {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": SECRET}],
             "content": [{"type": "reasoning_text", "text": SECRET}], "encrypted_content": SECRET},
            {"type": "message", "role": "assistant", "content": [text]},
        ],
    }  # fmt: skip


def make(kind: Any, **showing: Any) -> ReplyFilter:
    return ResponsesFilter(Showing(**showing)) if kind == "responses" else ReplyFilter(kind, Showing(**showing))


def keys(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from node
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from keys(item)


# Log-probabilities


def test_not_asked_for_they_are_gone() -> None:
    assert make("chat").whole(chat())["choices"][0]["logprobs"] is None
    assert make("completions").whole(completion())["choices"][0]["logprobs"] is None
    assert make("responses").whole(response())["output"][1]["content"][0]["logprobs"] == []
    assert make("chat").chunk(chunk({"content": "a"}, logprobs={"content": [ENTRY]}))["choices"][0]["logprobs"] is None  # type: ignore[index]


def test_as_many_alternatives_as_asked_for_the_likeliest_and_rounded() -> None:
    shown = make("chat", top=2, decimals=2).whole(chat())["choices"][0]["logprobs"]["content"]
    assert shown == [{
        "token": "a", "logprob": -0.12, "bytes": [97],
        "top_logprobs": [{"token": "a", "logprob": -0.12, "bytes": None}, {"token": "c", "logprob": -2.5, "bytes": None}],
    }]  # fmt: skip
    assert make("chat", top=0).whole(chat())["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    # fewer than asked for are left in their order
    assert [
        t["token"] for t in make("chat", top=5).whole(chat())["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    ] == ["b", "a", "c"]
    in_response = make("responses", top=1).whole(response())["output"][1]["content"][0]["logprobs"]
    assert [t["token"] for t in in_response[0]["top_logprobs"]] == ["a"]


def test_those_of_completions() -> None:
    shown = make("completions", top=1, decimals=0).whole(completion())["choices"][0]["logprobs"]
    assert shown == {
        "tokens": ["a", "b"], "token_logprobs": [0.0, None], "text_offset": [0, 1], "top_logprobs": [{"a": 0.0}, None],
    }  # fmt: skip
    assert str(shown["token_logprobs"][0]) == "0.0"
    assert make("completions", top=0).whole(completion())["choices"][0]["logprobs"]["top_logprobs"] is None


# Reasoning


@pytest.mark.parametrize(("kind", "reply"), [("chat", chat), ("completions", completion), ("responses", response)])
def test_reasoning_is_withheld_and_still_counted(kind: str, reply: Any) -> None:
    out = orjson.dumps(make(kind, reasoning=False).whole(reply())).decode()
    assert SECRET not in out
    assert "shown" in out
    assert "</think>" not in out
    if kind != "completions":
        assert '"reasoning_tokens":7' in out


@pytest.mark.parametrize(("kind", "reply"), [("chat", chat), ("completions", completion), ("responses", response)])
def test_reasoning_that_is_shown_is_left(kind: str, reply: Any) -> None:
    assert orjson.dumps(make(kind).whole(reply())).decode().count(SECRET) >= 1


def test_what_is_withheld_of_whole_replies_is_kept_for_a_summary() -> None:
    reply_filter = make("chat", reasoning=False)
    reply_filter.whole(chat())
    assert reply_filter.withheld == "SECRET\n\nSECRET\n\nSECRET"
    for_response = make("responses", reasoning=False)
    for_response.whole(response())
    assert SECRET in for_response.withheld


def test_parts_of_thinking_go_and_parts_of_text_stay() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": SECRET}]},
        {"type": "text", "text": "<think>SECRET</think>shown"},
    ]
    data = {"choices": [{"message": {"content": parts}}]}
    assert make("chat", reasoning=False).whole(data) == {
        "choices": [{"message": {"content": [{"type": "text", "text": "shown"}]}}]
    }


def stream(reply_filter: ReplyFilter, chunks: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    kept = [out for data in chunks if (out := reply_filter.chunk(copy.deepcopy(data))) is not None]
    texts = [c["delta"].get("content") or "" for out in kept for c in out["choices"]]
    return "".join(texts), kept


def test_a_stream_without_its_reasoning() -> None:
    chunks = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": SECRET}),
        chunk({"reasoning": SECRET, "content": None}),
        *(chunk({"content": c}) for c in "<think>SECRET</think>\n\nshown <th"),
        chunk({}, "stop"),
        {"id": "x", "choices": [], "usage": {"prompt_tokens": 1}},
    ]
    text, kept = stream(make("chat", reasoning=False), chunks)
    assert text == "shown <th"
    assert SECRET not in orjson.dumps(kept).decode()
    assert kept[0]["choices"][0]["delta"]["role"] == "assistant"
    assert kept[-2]["choices"][0]["finish_reason"] == "stop"
    assert kept[-1]["usage"] == {"prompt_tokens": 1}
    assert all(out["choices"] == [] or out["choices"][0]["delta"] or out["choices"][0]["finish_reason"] for out in kept)


def test_tool_calls_pass_while_reasoning_goes() -> None:
    call = {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}
    assert make("chat", reasoning=False).chunk(chunk(call)) == chunk(call)


def test_two_replies_in_one_stream_do_not_open_each_others_reasoning() -> None:
    reply_filter = make("chat", reasoning=False, n=2)

    def piece(index: int, text: str) -> str:
        out = reply_filter.chunk({"choices": [{"index": index, "delta": {"content": text}}]})
        return "" if out is None else str(out["choices"][0]["delta"]["content"])

    assert [piece(0, "<think>"), piece(1, "a"), piece(0, SECRET), piece(1, "b"), piece(0, "</think>c")] == [
        "",
        "a",
        "",
        "b",
        "c",
    ]


def test_a_stream_that_begins_inside_the_reasoning() -> None:
    reply_filter = make("chat", reasoning=False, starts=(Start(opened=True),))
    assert stream(reply_filter, [chunk({"content": c}) for c in "SECRET</think>shown"])[0] == "shown"


def test_events_of_a_response_leave_no_gap() -> None:
    reasoning = {"type": "reasoning", "id": "rs", "summary": []}
    message = response()["output"][1]
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response() | {"output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": reasoning},
        {"type": "response.reasoning_summary_part.added", "output_index": 0, "part": {"type": "summary_text", "text": SECRET}},
        {"type": "response.reasoning_text.delta", "output_index": 0, "delta": SECRET},
        {"type": "response.output_item.done", "output_index": 0, "item": reasoning | {"summary": [{"type": "summary_text", "text": SECRET}]}},
        {"type": "response.output_item.added", "output_index": 1, "item": message | {"content": []}},
        *({"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": c, "logprobs": [ENTRY]}
          for c in "<think>SECRET</think>shown"),
        {"type": "response.output_text.done", "output_index": 1, "content_index": 0, "text": "<think>SECRET</think>shown", "logprobs": [ENTRY]},
        {"type": "response.content_part.done", "output_index": 1, "part": message["content"][0]},
        {"type": "response.output_item.done", "output_index": 1, "item": message},
        {"type": "response.completed", "response": response()},
    ]  # fmt: skip
    reply_filter = make("responses", reasoning=False)
    kept = [out for event in copy.deepcopy(events) if (out := reply_filter.chunk(event)) is not None]
    assert SECRET not in orjson.dumps(kept).decode()
    assert "".join(out["delta"] for out in kept if "delta" in out) == "shown"
    assert {out["output_index"] for out in kept if "output_index" in out} == {0}
    assert [len(out["response"]["output"]) for out in kept if "response" in out] == [0, 1]
    done = next(out for out in kept if out["type"] == "response.output_text.done")
    assert (done["text"], done["logprobs"]) == ("shown", [])
    # shown, they stay as they came but for the log-probabilities
    shown = [make("responses").chunk(event) for event in copy.deepcopy(events)]
    assert [out["output_index"] for out in shown if out and "output_index" in out] == [
        e["output_index"] for e in events if "output_index" in e
    ]


# Usage of streams


def test_usage_nobody_asked_for_is_dropped() -> None:
    hiding = make("chat", usage=False)
    assert hiding.chunk({"choices": [], "usage": {"prompt_tokens": 1}}) is None
    assert hiding.chunk(chunk({"content": "a"}) | {"usage": {"prompt_tokens": 1}}) == chunk({"content": "a"})
    assert hiding.chunk({"choices": [], "usage": None}) is not None
    assert make("chat").chunk({"choices": [], "usage": {"prompt_tokens": 1}}) == {
        "choices": [],
        "usage": {"prompt_tokens": 1},
    }


# What must not leave, anywhere


ALWAYS = sorted(_ENGINE)
NAMES = [*ALWAYS, "logprobs", "top_logprobs", "token_logprobs"]
spots = st.sampled_from(["top", "choice", "message", "usage", "deep", "list"])


def plant(kind: str, spot: str, name: str, value: Any, *, streamed: bool) -> dict[str, Any]:
    """A reply with `name` somewhere."""
    data = {"chat": chat, "completions": completion, "responses": response}[kind]()
    if kind == "responses":
        holder = {
            "top": data,
            "usage": data["usage"],
            "choice": data["output"][1],
            "message": data["output"][1]["content"][0],
        }
    else:
        choice = data["choices"][0]
        data.setdefault("usage", {})
        holder = {"top": data, "usage": data["usage"], "choice": choice, "message": choice.get("message", choice)}
    if spot == "deep":
        data["usage"]["a"] = {"b": [{"c": {name: value}}]}
    elif spot == "list":
        data["usage"]["a"] = [[[{name: value}]]]
    else:
        holder[spot][name] = value
    if streamed and kind == "chat":
        data["choices"][0]["delta"] = data["choices"][0].pop("message")
    if streamed and kind == "responses":
        return {"type": "response.completed", "response": data, "sequence_number": 3}
    return data


@given(
    st.sampled_from(["chat", "completions", "responses"]),
    spots,
    st.sampled_from(NAMES),
    jsons,
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=400)
def test_no_forbidden_field_survives(
    kind: str, spot: str, name: str, value: Any, streamed: bool, reasoning: bool
) -> None:
    data = plant(kind, spot, name, value, streamed=streamed)
    reply_filter = make(kind, reasoning=reasoning)
    out = reply_filter.chunk(data) if streamed else reply_filter.whole(data)
    left = orjson.loads(orjson.dumps(out))
    body = left["response"] if kind == "responses" and streamed else left
    echoed = body.pop("tools", None)
    for key in list(keys(left)):
        assert key not in _ENGINE
        assert key not in {"token_logprobs"}
    # nothing but the empty shapes clients expect is left of log-probabilities
    for choice in body.get("choices", ()):
        assert choice.pop("logprobs", None) is None
    for item in body.get("output", ()):
        assert item.pop("logprobs", []) == []
        for part in item["content"]:
            assert part.pop("logprobs", []) == []
    if kind == "responses":
        assert isinstance(body.pop("top_logprobs", 0), int)
        assert echoed == response()["tools"]
    assert not set(keys(left)) & _LOGPROBS
    assert SECRET not in orjson.dumps(left).decode() or reasoning


@given(
    jsons,
    st.sampled_from(["chat", "completions", "responses", "embeddings"]),
    st.booleans(),
    st.sampled_from([None, 0, 2]),
)
@settings(max_examples=400)
def test_no_reply_makes_a_filter_fail(data: Any, kind: str, reasoning: bool, top: int | None) -> None:
    for name in (
        "choices",
        "output",
        "response",
        "item",
        "part",
        "usage",
        "type",
        "delta",
        "output_index",
        "logprobs",
        "content",
    ):
        for shape in ({name: data}, {name: [data]}, {"choices": [{name: data}]}, {"choices": [{"delta": {name: data}, "message": {name: data}}]},
                      {"output": [{name: data}]}, {"type": "response.output_text.delta", "delta": "a", name: data}):  # fmt: skip
            read = orjson.dumps(shape)
            make(kind, reasoning=reasoning, top=top).whole(orjson.loads(read))
            make(kind, reasoning=reasoning, top=top, usage=False).chunk(orjson.loads(read))


@pytest.mark.parametrize("kind", ["chat", "completions", "responses"])
def test_a_reply_nested_without_end(kind: str) -> None:
    deep: Any = {"token_ids": [1]}
    for _ in range(900):
        deep = {"content": [deep]} if kind == "responses" else {"a": [deep]}
    for data in ({"output": [deep]}, {"choices": [deep]}, {"x": deep}, {"item": deep}):
        out = make(kind, reasoning=False).whole(copy.copy(data))
        assert "token_ids" not in str(list(_some_keys(out)))
        make(kind, reasoning=False).chunk(copy.copy(data))


def _some_keys(node: Any) -> Iterator[str]:
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield from item
            stack += item.values()
        elif isinstance(item, list):
            stack += item
