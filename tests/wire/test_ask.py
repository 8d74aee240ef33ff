"""The gateway's reader of requests: what it knows, what it counts, what it refuses and how it says so."""

from __future__ import annotations

import copy
import json
import time
import unicodedata
from typing import Any

import jinja2
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import chat, completion_create_params, embedding_create_params, responses
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params

from asks import (
    CHAT,
    CHAT_FULL,
    COMPLETIONS,
    RESPONSES,
    RESPONSES_FULL,
    TOOL,
    VALID,
    jsons,
    mutated,
)
from spiritsafe.wire import REFUSED, ApiError, Ask, parse_ask
from spiritsafe.wire._ask import _KINDS
from spiritsafe.wire._ask_types import json_size, text_size


def parse(kind: str, body: Any, allow: tuple[str, ...] = ()) -> Ask:
    return parse_ask(kind, body if isinstance(body, bytes) else orjson.dumps(body), allow)


def attempt(kind: str, body: Any, allow: tuple[str, ...] = ()) -> Ask | ApiError:
    try:
        return parse(kind, body, allow)
    except ApiError as error:
        return error


def refusal(kind: str, body: Any, allow: tuple[str, ...] = ()) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(kind, body, allow)
    assert caught.value.status == 400
    assert "\n" not in caught.value.message
    return caught.value


# What is read


@pytest.mark.parametrize(("kind", "body"), VALID)
def test_valid_requests_are_forwarded_as_they_are(kind: str, body: dict[str, Any]) -> None:
    ask = parse(kind, body)
    assert ask.body == body
    assert ask.model == "m"


def test_a_chat_request_in_full() -> None:
    ask = parse("chat", CHAT_FULL)
    assert (ask.n, ask.max_tokens, ask.temperature, ask.top_logprobs) == (2, 100, 0.5, 5)
    assert (ask.stream, ask.include_usage, ask.has_logit_bias) == (True, True, True)
    assert (ask.end_user, ask.turns, ask.messages, ask.images) == ("s1", 2, 6, 1)
    assert ask.predicted_bytes == len("It rains.")
    assert ("user", "And tomorrow?") in ask.said
    assert set(ask.texts()) >= {"Be brief.", "What is this?", "rain", "c1", "dev", "The tool says so."}
    # 6 messages, 1 + 2 parts, 1 call, 1 tool
    assert ask.pieces == 11


def test_a_responses_request_in_full() -> None:
    ask = parse("responses", RESPONSES_FULL)
    assert (ask.max_tokens, ask.top_logprobs, ask.turns, ask.messages, ask.images) == (50, 3, 2, 6, 1)
    assert set(ask.texts()) >= {"Be brief.", "Hello", "Hi", "Greets", "zz", "rain", "And now?"}


@pytest.mark.parametrize(
    ("prompt", "prompts", "size", "ids"),
    [
        ("abc", 1, 3, 0),
        (["ab", "c"], 2, 3, 0),
        ([5, 6, 7], 1, 3, 3),
        ([[5], [6, 7]], 2, 3, 3),
    ],
)
def test_prompts_multiply(prompt: Any, prompts: int, size: int, ids: int) -> None:
    ask = parse("completions", {"model": "m", "prompt": prompt})
    assert (ask.prompts, ask.text_bytes, ask.token_ids) == (prompts, size, ids)
    assert parse("embeddings", {"model": "m", "input": prompt}).prompts == prompts


@pytest.mark.parametrize(
    ("extra", "asked"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 4}, 4)],
)
def test_log_probabilities_of_chat(extra: dict[str, Any], asked: int | None) -> None:
    assert parse("chat", CHAT | extra).top_logprobs == asked


@pytest.mark.parametrize(
    ("extra", "asked"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"top_logprobs": 2}, 2),
        ({"include": ["message.output_text.logprobs"]}, 0),
    ],
)
def test_log_probabilities_of_responses(extra: dict[str, Any], asked: int | None) -> None:
    assert parse("responses", RESPONSES | extra).top_logprobs == asked


@pytest.mark.parametrize(
    "extra",
    [{"logit_bias": {"1": 5}}, {"allowed_token_ids": [1]}, {"bad_words": ["no"]}],
    ids=lambda extra: next(iter(extra)),
)
def test_what_moves_probabilities(extra: dict[str, Any]) -> None:
    assert parse("chat", CHAT | extra).has_logit_bias
    assert not parse("chat", CHAT | {name: type(value)() for name, value in extra.items()}).has_logit_bias


def test_of_two_token_limits_the_larger_is_the_bound() -> None:
    for pair in ((5, 9), (9, 5)):
        body = CHAT | dict(zip(("max_tokens", "max_completion_tokens"), pair, strict=True))
        assert parse("chat", body).max_tokens == 9


def test_of_two_equal_keys_the_last_counts_and_is_forwarded() -> None:
    ask = parse("chat", b'{"model":"m","n":100,"n":2,"messages":[{"role":"user","content":"a"}]}')
    assert ask.n == 2
    assert orjson.loads(orjson.dumps(ask.body))["n"] == 2


# The whole surface of OpenAI's API is known


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("chat", chat_params.CompletionCreateParamsBase),
        ("completions", completion_create_params.CompletionCreateParamsBase),
        ("embeddings", embedding_create_params.EmbeddingCreateParams),
        ("responses", response_create_params.ResponseCreateParamsBase),
    ],
)
def test_every_field_of_the_openai_client_is_known_or_refused_with_a_reason(kind: Any, params: Any) -> None:
    assert set(params.__annotations__) - set(_KINDS[kind]) - set(REFUSED) == set()


@pytest.mark.parametrize(
    "message",
    [
        chat.ChatCompletionUserMessageParam,
        chat.ChatCompletionAssistantMessageParam,
        chat.ChatCompletionToolMessageParam,
        chat.ChatCompletionFunctionMessageParam,
    ],
)
def test_every_field_of_the_openai_clients_messages_is_known(message: Any) -> None:
    for name in message.__annotations__:
        read = attempt("chat", {"model": "m", "messages": [{"role": "assistant", "content": "a"} | {name: 1.5}]})
        assert isinstance(read, Ask) or read.code != "unknown_parameter"


@pytest.mark.parametrize("item", [responses.FunctionToolParam, responses.CustomToolParam])
def test_every_field_of_a_tool_is_known_or_refused_with_a_reason(item: Any) -> None:
    known = {"type", "name", "description", "parameters", "strict", "output_schema", "format"}
    assert set(item.__annotations__) - known <= set(REFUSED)


# What is refused, and how


@pytest.mark.parametrize(
    ("kind", "extra", "param", "says"),
    [
        ("chat", {"max_token": 3}, "max_token", "did you mean max_tokens?"),
        ("chat", {"zzzzzz": 3}, "zzzzzz", "leave it out"),
        ("chat", {"messages": [{"role": "user", "content": "a", "nmae": "b"}]}, "messages[0].nmae", "did you mean name?"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "image_url": {}}]}]},
         "messages[0].content[0].image_url", "not known"),
        ("chat", {"tools": [TOOL | {"run_at": 1}]}, "tools[0].run_at", "not known"),
        ("chat", {"stream": True, "stream_options": {"continuous_usage_stats": True}},
         "stream_options.continuous_usage_stats", "not known"),
        ("responses", {"input": [{"role": "user", "content": "a", "x": 1}]}, "input[0].x", "not known"),
    ],
)  # fmt: skip
def test_unknown_fields_are_refused_with_the_nearest_name(
    kind: str, extra: dict[str, Any], param: str, says: str
) -> None:
    error = refusal(kind, (CHAT if kind == "chat" else RESPONSES) | extra)
    assert error.param == param
    assert says in error.message
    assert error.code == "unknown_parameter"


def test_an_allowed_field_passes_and_counts_as_prompt() -> None:
    documents = [{"title": "t", "text": "long " * 100}]
    ask = parse("chat", CHAT | {"documents": documents}, ("documents",))
    assert ask.body["documents"] == documents
    assert ask.text_bytes > parse("chat", CHAT).text_bytes + 500
    inside = {"model": "m", "messages": [{"role": "user", "content": "a", "weight": 3}]}
    assert parse("chat", inside, ("weight",)).text_bytes > 1
    assert refusal("chat", inside).param == "messages[0].weight"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_slips_past_meter_or_policy_is_refused_even_if_allowed(name: str) -> None:
    for value in ("x", 7, True, {"a": 1}):
        error = refusal("chat", CHAT | {name: value}, (name,))
        assert error.param == name
        assert error.code == "unsupported_parameter"
        assert error.message.startswith(f"{name} is refused: ")
    for neutral in (*REFUSED[name][0], None):
        assert parse("chat", CHAT | {name: neutral})


@pytest.mark.parametrize(
    ("kind", "extra", "param"),
    [
        ("completions", {"echo": True, "logprobs": 1}, "echo"),
        ("completions", {"echo": True, "logprobs": 0}, "echo"),
        ("completions", {"best_of": 2}, "best_of"),
        ("completions", {"prompt_logprobs": 0}, "prompt_logprobs"),
        ("responses", {"store": True}, "store"),
        ("responses", {"prompt": {"id": "p"}}, "prompt"),
        ("responses", {"previous_response_id": "r"}, "previous_response_id"),
        ("responses", {"conversation": "c"}, "conversation"),
        ("responses", {"background": True}, "background"),
        ("responses", {"include": ["file_search_call.results"]}, "include[0]"),
        ("responses", {"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ("responses", {"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
        ("responses", {"input": [{"type": "item_reference", "id": "i"}]}, "input[0].type"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
         "input[0].content[0].type"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
         "input[0].content[0].file_id"),
        ("responses", {"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ("chat", {"service_tier": "priority"}, "service_tier"),
        ("chat", {"modalities": ["text", "audio"]}, "modalities"),
        ("chat", {"chat_template_kwargs": {"chat_template": "{{ x }}"}}, "chat_template_kwargs.chat_template"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
         "messages[0].content[0].type"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {}}]}]},
         "messages[0].content[0].type"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
         "messages[0].content[0].image_url.url"),
        ("chat", {"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
        ("chat", {"messages": [{"role": "system", "content": "a", "tools": [TOOL]}]}, "messages[0].tools"),
        ("chat", {"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ("chat", {"response_format": {"type": "structural_tag", "structures": []}}, "response_format.type"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_refused(kind: str, extra: dict[str, Any], param: str) -> None:
    base = {"chat": CHAT, "completions": COMPLETIONS, "responses": RESPONSES}[kind]
    assert refusal(kind, base | extra).param == param


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}]},
         "messages[0].tool_calls[0].function.arguments"),
        ({"n": True}, "n"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 129.0}, "n"),
        ({"seed": 1e19}, "seed"),
        ({"stop_token_ids": [1, 2.5]}, "stop_token_ids"),
        ({"stop_token_ids": [1e300]}, "stop_token_ids"),
        ({"stop_token_ids": [-(2.0**63)]}, "stop_token_ids"),
        ({"stop_token_ids": [1.0, True]}, "stop_token_ids"),
        ({"n": "2"}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": 2**64 - 1}, "max_tokens"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logit_bias": {"5": "a"}}, "logit_bias.5"),
        ({"logit_bias": {"5": True}}, "logit_bias.5"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"user": 5}, "user"),
        ({"user": "u" * 513}, "user"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"tools": "all"}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"description": "a"}}]}, "tools[0].function.name"),
    ],
)  # fmt: skip
def test_wrong_types_and_ranges_are_named(extra: dict[str, Any], param: str) -> None:
    error = refusal("chat", CHAT | extra)
    assert error.param == param
    assert param in error.message


def with_fractions(value: Any) -> Any:
    """The same JSON value, whole numbers written as 5.0."""
    if type(value) is int:
        return float(value)
    if isinstance(value, dict):
        return {key: with_fractions(item) for key, item in value.items()}
    return [with_fractions(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("kind", "body"), VALID)
def test_a_whole_number_may_be_written_with_a_fraction_of_nothing(kind: str, body: dict[str, Any]) -> None:
    ask, same = parse(kind, with_fractions(body)), parse(kind, body)
    assert ask.body == same.body
    for name in Ask.__slots__:
        if name not in ("body", "json_bytes", "text_bytes", "said"):  # 1.0 in a tool's schema is longer than 1
            assert getattr(ask, name) == getattr(same, name), name
    assert (type(ask.n), type(ask.max_tokens)) == (type(same.n), type(same.max_tokens))


@given(
    field=st.sampled_from(["n", "max_tokens", "seed", "top_k", "min_tokens", "stream_interval"]),
    value=st.integers(-(2**64), 2**64) | st.integers(-3, 200),
    fraction=st.sampled_from([0.0, 0.5]),
)
def test_what_is_sent_on_is_an_int_or_the_request_is_refused(field: str, value: int, fraction: float) -> None:
    number = float(value) + fraction
    as_float = attempt("chat", CHAT | {field: number})
    if not number.is_integer():
        assert isinstance(as_float, ApiError) and as_float.param == field
        return
    if abs(number) >= 2.0**63:  # it may have been written as an integer out of range
        assert isinstance(as_float, ApiError)
        return
    as_int = attempt("chat", CHAT | {field: int(number)})
    if isinstance(as_int, ApiError):
        assert isinstance(as_float, ApiError)
    else:
        assert isinstance(as_float, Ask)
        assert type(as_float.body[field]) is int and as_float.body[field] == number


def test_no_number_is_too_large_to_be_refused() -> None:
    for text in (b"1e400", b"-1e400", b"1e308", b"NaN", b"Infinity", b"true", b'"5"'):
        assert isinstance(attempt("chat", orjson.dumps(CHAT)[:-1] + b',"n":' + text + b"}"), ApiError), text


@pytest.mark.parametrize(
    "prompt", [None, [], [[]], [1, "a"], ["a", 1], [True], [-1], [2**31], [1.5], {"a": 1}, [["a"]], 5]
)
def test_prompts_that_are_none(prompt: Any) -> None:
    assert str(refusal("completions", {"model": "m", "prompt": prompt}).param).startswith("prompt")
    assert str(refusal("embeddings", {"model": "m", "input": prompt}).param).startswith("input")


# What is no request at all


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"a"', b"3", b"\xff\xfe", b"{}{}", b"[" * 10_000, b'{"a":' * 10_000,
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","temperature":NaN,"messages":[{"role":"user","content":"a"}]}',
        b'{"model":"m","temperature":1e999,"messages":[{"role":"user","content":"a"}]}',
        b'\xef\xbb\xbf{"model":"m","messages":[{"role":"user","content":"a"}]}',
        '{"model":"m","messages":[{"role":"user","content":"a"}]}'.encode("utf-16"),
    ],
    ids=range(17),
)  # fmt: skip
def test_bodies_that_are_no_request(body: bytes) -> None:
    refusal("chat", body)


def test_nesting_that_could_not_be_written_again_is_refused() -> None:
    outcomes = set()
    for depth in range(235, 260):
        deep = b"[" * depth + b"]" * depth
        for where in (b'"tools":[{"type":"function","function":{"name":"f","parameters":%b}}]', b'"extra":%b'):
            body = b'{"model":"m","messages":[{"role":"user","content":"a"}],%b}' % (where % deep)
            read = attempt("chat", body, ("extra",))
            outcomes.add(type(read))
            if isinstance(read, Ask):
                orjson.dumps({**read.body, "vllm_xargs": {"watermark_key_id": "k"}})
            else:
                assert "nested too deeply" in read.message
    assert outcomes == {Ask, ApiError}


def test_large_bodies_are_read_quickly_and_memory_stays_theirs() -> None:
    """A bound on work, not on speed: ten seconds would be a quadratic reader."""
    size = 10_000_000
    user = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}'
    bodies = {
        "chat": [
            user % (b"a" * size),
            user % ("é…".encode() * (size // 5)),
            b'{"model":"m","messages":[%b]}' % b",".join([b'{"role":"user","content":"a"}'] * (size // 30)),
            b'{"%b":1}' % (b"x" * size),
            b'{"model":"m","messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":'
            b'{"name":"f","parameters":%b1,%b1%b}}]}' % (b"[" * 200, b"1," * (size // 2), b"]" * 200),
        ],
        "completions": [b'{"model":"m","prompt":[%b1]}' % (b"1," * (size // 2))],
    }
    started = time.process_time()
    for kind, each in bodies.items():
        for body in each:
            read = attempt(kind, body)
            assert isinstance(read, Ask) or len(read.message) < 500
    assert time.process_time() - started < 30


# Counting


@given(st.text())
def test_a_text_counts_no_less_than_any_form_tokenizers_read(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    size = text_size(text)
    assert size >= len(text.encode())
    for form in ("NFC", "NFKC"):
        assert size >= len(unicodedata.normalize(form, text).encode())


def test_characters_that_grow_when_normalised() -> None:
    assert text_size("\ufdfa") == 33
    assert text_size("\U0001d160") == 12
    assert text_size("plain") == 5


@given(jsons)
def test_json_counts_no_less_than_any_usual_rendering(value: Any) -> None:
    value = orjson.loads(orjson.dumps(value))
    size = json_size(value)
    environment = jinja2.Environment(autoescape=False)
    renderings = [
        orjson.dumps(value).decode(),
        *(json.dumps(value, indent=indent, ensure_ascii=ascii) for indent in (None, 2, 4) for ascii in (True, False)),
        environment.from_string("{{ v | tojson }}").render(v=value),
        environment.from_string("{{ v | tojson(indent=4) }}").render(v=value),
    ]
    for text in renderings:
        assert size >= text_size(text)


def test_everything_that_may_reach_the_prompt_is_counted() -> None:
    """Each text made longer makes the count grow by at least as much."""
    marker = "In this place."
    for kind, body in VALID:
        before = parse(kind, body).text_bytes
        for path in _text_paths(body):
            longer = copy.deepcopy(body)
            holder: Any = longer
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] += marker
            try:
                after = parse(kind, longer).text_bytes
            except ApiError:  # a name, a role, a URL
                continue
            if (
                path[0] in ("messages", "prompt", "input", "instructions", "tools", "suffix", "prediction")
                and path[-1] not in _LABELS
            ):
                assert after >= before + len(marker), path


_LABELS = ("url", "image_url", "detail", "type", "status", "arguments")


def _text_paths(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(node, str):
        return [at] if not (len(at) > 1 and at[-1] == "id" and at[0] == "input") else []
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path for key, item in inner for path in _text_paths(item, (*at, key))]


def test_empty_parts_count_as_pieces() -> None:
    parts = [{"type": "text", "text": ""}] * 50
    ask = parse("chat", {"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert ask.pieces == 51


def test_a_tool_call_counts_as_json_its_arguments_as_a_string_and_parsed() -> None:
    def size(arguments: Any) -> tuple[int, dict[str, Any]]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return parse("chat", {"model": "m", "messages": [{"role": "assistant", "tool_calls": [call]}]}).text_bytes, call

    for arguments in ('{"a":[[[[1]]]]}', "not json\n\x1f", {"a": [1]}):
        counted, call = size(arguments)
        parsed = copy.deepcopy(call)
        if arguments == '{"a":[[[[1]]]]}':
            parsed["function"]["arguments"] = json.loads(arguments)
        for each in (call, parsed):
            assert counted >= len(json.dumps(each, indent=4))


def test_a_tools_result_counts_as_a_json_string() -> None:
    ask = parse("chat", {"model": "m", "messages": [{"role": "tool", "content": "\n\x1f"}]})
    assert ask.text_bytes == ask.quoted_bytes == len(json.dumps("\n\x1f"))


# Fuzz


@given(
    st.sampled_from(["chat", "completions", "responses", "embeddings"]),
    st.one_of(st.binary(max_size=200), jsons.map(orjson.dumps)),
)
def test_random_bodies_raise_nothing_but_api_errors(kind: str, body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(kind, body)
    assert caught.value.status == 400


@given(mutated())
@settings(max_examples=400)
def test_mutated_requests_are_read_soundly_or_refused(request: tuple[str, bytes]) -> None:
    kind, body = request
    ask = attempt(kind, body)
    if isinstance(ask, ApiError):
        assert ask.status == 400
        assert 0 < len(ask.message) < 600
        orjson.dumps(ask.to_dict())
        return
    assert orjson.loads(orjson.dumps(ask.body)) == orjson.loads(body)
    assert 1 <= ask.n <= 128
    assert ask.prompts >= 1
    plain = sum(len(text.encode()) for text in ask.texts(quoted=False))
    assert ask.text_bytes >= ask.json_bytes + ask.quoted_bytes + ask.token_ids + plain
    assert ask.max_tokens is None or ask.max_tokens >= 1
    assert ask.temperature is None or 0 <= ask.temperature <= 2
    assert ask.top_logprobs is None or 0 <= ask.top_logprobs <= 128
    assert ask.end_user is None or ask.end_user
    assert (ask.model, ask.stream) == (ask.body["model"], ask.body.get("stream") is True)


def test_the_valid_requests_cover_every_kind() -> None:
    assert {kind for kind, _ in VALID} == set(_KINDS)
