"""A whole reply as a stream: what a client puts together is the reply, and the stream looks like any other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe.serve._replay import as_stream
from spiritsafe.wire import SSE_DONE, SseParser

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def chat(content: str | None, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": None} | more.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None} | more
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "small", "system_fingerprint": "fp",
        "choices": [choice], "usage": USAGE,
    }  # fmt: skip


def events(reply: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    raw = as_stream(reply, **options)
    assert raw[-1] == SSE_DONE
    parser = SseParser()
    data = [event.data for piece in raw for event in parser.feed(piece)]
    assert data.pop() == "[DONE]"
    return [json.loads(item) for item in data]


def joined(chunks: list[dict[str, Any]], name: str) -> str:
    deltas = (choice["delta"] for chunk in chunks for choice in chunk["choices"])
    return "".join(delta[name] for delta in deltas if delta.get(name))


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_client_puts_the_reply_together(text: str, reasoning: str) -> None:
    chunks = events(chat(text, message={"reasoning_content": reasoning}))
    assert joined(chunks, "content") == text and joined(chunks, "reasoning_content") == reasoning
    first, *middle, last = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["delta"] == {} and last["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [first, *middle])
    for chunk in chunks:
        assert {name: chunk[name] for name in ("id", "object", "created", "model", "system_fingerprint")} == {
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "small",
            "system_fingerprint": "fp",
        }  # fmt: skip
        assert "usage" not in chunk


def test_words_come_one_by_one_and_reasoning_before_the_answer() -> None:
    chunks = events(chat("It is four.", message={"reasoning_content": "Two and two"}))
    said = [next(iter(chunk["choices"][0]["delta"].items())) for chunk in chunks[1:-1]]
    assert said == [
        ("reasoning_content", "Two "), ("reasoning_content", "and "), ("reasoning_content", "two"),
        ("content", "It "), ("content", "is "), ("content", "four."),
    ]  # fmt: skip


def test_usage_comes_last_where_it_was_asked_for() -> None:
    *before, last = events(chat("four"), include_usage=True)
    assert last["choices"] == [] and last["usage"] == USAGE
    assert all(chunk["usage"] is None for chunk in before)


def test_logprobs_and_ids_stay_beside_their_text() -> None:
    logprobs = {"content": [{"token": "It"}, {"token": " is"}], "refusal": None}
    chunks = events(chat("It is", logprobs=logprobs, token_ids=[1, 2]))
    (part,) = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert part["delta"] == {"content": "It is"} and part["logprobs"] == logprobs and part["token_ids"] == [1, 2]


@pytest.mark.parametrize("content", [None, ""])
def test_a_reply_without_text_still_begins_and_ends(content: str | None) -> None:
    first, last = events(chat(content, finish_reason="length"))
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"][0]["finish_reason"] == "length"


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_completions_are_played_back_too(text: str) -> None:
    choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": None}
    reply = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "small", "choices": [choice]}
    chunks = events(reply)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
