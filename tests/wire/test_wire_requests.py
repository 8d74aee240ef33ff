"""Chat requests: what is read, what is ignored, what is refused and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spiritsafe.records import Message
from spiritsafe.wire import ApiError, ChatRequest, parse_chat_request

HELLO = [{"role": "user", "content": "hello"}]


def parse(**fields: Any) -> ChatRequest:
    return parse_chat_request(json.dumps({"model": "m", "messages": HELLO} | fields).encode(), max_logprobs=64)


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


def test_defaults_are_openais() -> None:
    assert parse() == ChatRequest(model="m", messages=(Message("user", "hello"),))


def test_every_field_is_read() -> None:
    request = parse(
        n=3, seed=-7, temperature=0, top_p=0.5, max_tokens=9, stop=["a", "b"], logprobs=True, top_logprobs=64,
        stream=True, stream_options={"include_usage": True}, return_token_ids=True, return_tokens_as_token_ids=True,
    )  # fmt: skip
    assert request == ChatRequest(
        model="m", messages=(Message("user", "hello"),), n=3, seed=-7, temperature=0.0, top_p=0.5, max_tokens=9,
        stop=("a", "b"), logprobs=True, top_logprobs=64, stream=True, include_usage=True, return_token_ids=True,
        tokens_as_ids=True,
    )  # fmt: skip


def test_the_newer_token_limit_wins() -> None:
    assert parse(max_tokens=9, max_completion_tokens=4).max_tokens == 4


def test_text_parts_are_joined_and_developer_means_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = parse(messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}])
    assert request.messages == (Message("system", "be brief"), Message("user", "ab"))


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "none"},
        {"response_format": {"type": "text"}, "top_k": -1, "repetition_penalty": 1.0, "best_of": 1},
        {"temperature": None, "stop": None, "seed": None, "tools": None, "nonsense": None},
    ],
)
def test_what_cannot_change_the_answer_is_ignored(fields: dict[str, Any]) -> None:
    assert parse(**fields) == parse()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frequency_penalty", 0.1),
        ("presence_penalty", -1),
        ("logit_bias", {"5": 1}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("top_k", 5),
        ("repetition_penalty", 1.1),
        ("reasoning_effort", "high"),
        ("audio", {}),
    ],
)
def test_what_would_change_the_answer_is_refused(field: str, value: Any) -> None:
    error = refused(**{field: value})
    assert (error.param, error.code) == (field, "unsupported_parameter")


def test_a_misspelt_field_is_refused_with_the_nearest_name() -> None:
    error = refused(max_token=5)
    assert error.param == "max_token"
    assert "did you mean max_tokens" in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", 129), ("n", True), ("n", "2"), ("n", 1.0),
        ("temperature", 2.1), ("temperature", -0.1), ("temperature", "hot"), ("temperature", True),
        ("top_p", 0), ("top_p", 1.01), ("max_tokens", 0), ("max_completion_tokens", -1),
        ("seed", 2**63), ("seed", 1.5), ("stop", ""), ("stop", [""]), ("stop", [1]), ("stop", ["x"] * 17), ("stop", 5),
        ("logprobs", 1), ("stream", "yes"), ("return_token_ids", 1), ("model", 5),
    ],
)  # fmt: skip
def test_types_and_ranges_are_strict(field: str, value: Any) -> None:
    assert refused(**{field: value}).param == field


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages[0]"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([*HELLO, {"role": "user"}], "messages[1].content"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages[0]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0]"),
    ],
)
def test_messages_are_checked_one_by_one(messages: Any, where: str) -> None:
    assert refused(messages=messages).param == where


def test_alternatives_need_logprobs_and_a_limit() -> None:
    assert refused(top_logprobs=2).param == "top_logprobs"
    assert "from 0 to 64" in refused(logprobs=True, top_logprobs=65).message
    assert refused(stream_options={"include_usage": True}).param == "stream_options"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'"x"'])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="body") as caught:
        parse_chat_request(body)
    assert caught.value.status == 400


def test_errors_have_openais_shape() -> None:
    error = ApiError(404, "no", param="model", code="model_not_found")
    assert json.loads(error.body()) == {
        "error": {"message": "no", "type": "not_found_error", "param": "model", "code": "model_not_found"}
    }
    assert ApiError(500, "x").type == "server_error"
