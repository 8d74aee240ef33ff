"""Requests as the gateway reads them, for the four endpoints of OpenAI's API that answer a prompt.

A local server's reader (`_chat`) refuses what it does not implement. This one forwards: it knows OpenAI's whole request
surface and what vLLM and SGLang commonly add, and refuses what would slip past the meter or the output policy. Names
nobody knows are refused too, unless the operator allows them: any of them could change cost or log-probabilities.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from spiritsafe.wire import _ask_chat as chat
from spiritsafe.wire import _ask_items as items
from spiritsafe.wire._ask_prompts import prompts
from spiritsafe.wire._ask_types import Ask, AskKind, FieldError
from spiritsafe.wire._errors import ApiError
from spiritsafe.wire._fields import (
    Check,
    as_whole,
    bad,
    check_fields,
    flag,
    listed,
    number,
    one_of,
    said,
    text,
    unsupported,
    whole,
)

__all__ = ["parse_ask"]

_MAX_N = 128
_MAX_LOGPROBS = 128
_MAX_STOP = 16
_MAX_WORDS = 1024
_LONGEST_MODEL = 256
_LONGEST_USER = 512


def parse_ask(kind: AskKind, body: bytes, allow_fields: Collection[str] = ()) -> Ask:
    """Read the body of a POST to /v1/chat/completions ("chat"), /v1/completions, /v1/responses or /v1/embeddings.

    allow_fields: names of unknown fields to let through, at any level that is checked. Their bytes count as prompt.
        A field that is refused with a reason stays refused.

    Raises:
        ApiError: status 400; the message says which field and what it may be.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        said_so = "the body is empty" if not body else f"the body is not valid JSON: {error}"
        raise ApiError(400, said_so, code="invalid_json") from None
    if type(data) is not dict:
        raise ApiError(400, "the body must be a JSON object")
    ask = Ask(kind, data, allowed=allow_fields)
    try:
        check_fields(ask, data, _KINDS[kind])
        _finish(ask, data)
    except FieldError as error:
        raise ApiError(400, error.message, param=error.path or None, code=error.code) from None
    return ask


def _model(ask: Ask, value: Any) -> None:
    if type(value) is not str or not 0 < len(value) <= _LONGEST_MODEL or not value.isprintable():
        bad(f"a name of up to {_LONGEST_MODEL} characters", value)
    ask.model = value


def _stream(ask: Ask, value: Any) -> None:
    flag(ask, value)
    ask.stream = value


_STREAM_OPTIONS: Mapping[str, Check] = {"include_usage": flag, "include_obfuscation": flag}


def _stream_options(ask: Ask, value: Any) -> None:
    check_fields(ask, value, _STREAM_OPTIONS)
    ask.include_usage = value.get("include_usage") is True


_n_range, _tokens_range, _temperature_range = whole(1, _MAX_N), whole(1), number(0, 2)
_user_length = text(_LONGEST_USER)


def _n(ask: Ask, value: Any) -> int:
    ask.n = _n_range(ask, value)
    return ask.n


def _max_tokens(ask: Ask, value: Any) -> int:
    limit = _tokens_range(ask, value)
    # servers differ in which of two limits they follow, so the larger one is the bound
    ask.max_tokens = limit if ask.max_tokens is None else max(ask.max_tokens, limit)
    return limit


def _temperature(ask: Ask, value: Any) -> None:
    _temperature_range(ask, value)
    ask.temperature = float(value)


def _user(ask: Ask, value: Any) -> None:
    _user_length(ask, value)
    ask.end_user = ask.end_user or value or None


def _safety_identifier(ask: Ask, value: Any) -> None:
    _user_length(ask, value)
    ask.end_user = value or ask.end_user


def _logit_bias(ask: Ask, value: Any) -> None:
    if type(value) is not dict:
        bad("an object", value)
    for token, bias in value.items():
        if (type(bias) is not int and type(bias) is not float) or not -100 <= bias <= 100:
            bad("a number from -100 to 100", bias, token[:16])
    ask.has_logit_bias = ask.has_logit_bias or bool(value)


def _moves(check: Check) -> Check:
    """What moves probabilities as `logit_bias` does."""

    def moving(ask: Ask, value: Any) -> int | None:
        exact = check(ask, value)
        ask.has_logit_bias = ask.has_logit_bias or bool(value)
        return exact

    return moving


def _never_stored(ask: Ask, value: Any) -> None:
    if value is not False:
        unsupported("is refused: stored replies come back as context this gateway does not see; send false")


def _no_n(ask: Ask, value: Any) -> int:
    if as_whole(value) != 1:
        bad("1", value)
    return 1


def _metadata(ask: Ask, value: Any) -> None:
    if type(value) is not dict or len(value) > 64 or not all(type(item) is str for item in value.values()):
        bad("an object of up to 64 strings", value)


def _modalities(_: Ask, value: Any) -> None:
    if value != ["text"]:
        bad('["text"]: other kinds of output cannot be counted', value)


def _finish(ask: Ask, data: dict[str, Any]) -> None:
    """What one field alone cannot tell."""
    if not ask.model:
        raise FieldError("is missing", "model")
    content = _CONTENT[ask.kind]
    if data.get(content) is None:
        raise FieldError("is missing", content)
    if data.get("stream_options") is not None and not ask.stream:
        raise FieldError("needs stream: true", "stream_options")
    if ask.kind == "chat":
        top = data.get("top_logprobs")
        if data.get("logprobs"):
            ask.top_logprobs = top or 0
        elif top:
            raise FieldError("needs logprobs: true", "top_logprobs")
    elif ask.kind == "completions":
        ask.top_logprobs = data.get("logprobs")
        if data.get("echo") and ask.top_logprobs is not None:
            unsupported("is refused with logprobs: it would give log-probabilities of any text you send", "echo")
    elif ask.kind == "responses":
        top = data.get("top_logprobs")
        if top or "message.output_text.logprobs" in (data.get("include") or ()):
            ask.top_logprobs = top or 0
    if ask.json_bytes:
        try:
            orjson.dumps(data)
        except TypeError:
            raise FieldError("is nested too deeply") from None


_LABELS: Mapping[str, Check] = {
    "model": _model,
    "user": _user,
    "safety_identifier": _safety_identifier,
    "metadata": _metadata,
    "service_tier": one_of("auto", "default"),
    "prompt_cache_key": text(1024),
    "prompt_cache_retention": one_of("in_memory", "in-memory", "24h"),
    "cache_salt": text(1024),
}
_SAMPLING: Mapping[str, Check] = {
    "stream": _stream,
    "stream_options": _stream_options,
    "temperature": _temperature,
    "top_p": number(0, 1, above=True),
    "top_k": whole(-1, 2**31 - 1),
    "min_p": number(0, 1),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(0, 10, above=True),
    "seed": whole(-(2**63)),
    "stop": listed(str, "strings", most=_MAX_STOP, single=True),
    "stop_token_ids": listed(int, "token ids", most=_MAX_WORDS),
    "logit_bias": _logit_bias,
    "allowed_token_ids": _moves(listed(int, "token ids", most=10**6)),
    "bad_words": _moves(listed(str, "strings", most=_MAX_WORDS)),
    "ignore_eos": flag,
    "min_tokens": whole(0),
    "include_stop_str_in_output": flag,
    "no_stop_trim": flag,
    "skip_special_tokens": flag,
    "spaces_between_special_tokens": flag,
    "add_special_tokens": flag,
    "thinking_token_budget": whole(-1),
    "stream_interval": whole(1, 1024),
}
_KINDS: Mapping[AskKind, Mapping[str, Check]] = {
    "chat": {
        **_LABELS,
        **_SAMPLING,
        "messages": chat.messages,
        "n": _n,
        "max_tokens": _max_tokens,
        "max_completion_tokens": _max_tokens,
        "logprobs": flag,
        "top_logprobs": whole(0, _MAX_LOGPROBS),
        "tools": chat.tools,
        "tool_choice": chat.tool_choice,
        "parallel_tool_calls": flag,
        "functions": chat.functions,
        "function_call": chat.tool_choice,
        "response_format": chat.response_format,
        "prediction": chat.prediction,
        "chat_template_kwargs": chat.template_arguments,
        "modalities": _modalities,
        "reasoning_effort": one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
        "verbosity": one_of("low", "medium", "high"),
        "include_reasoning": flag,
        "separate_reasoning": flag,
        "stream_reasoning": flag,
        "add_generation_prompt": flag,
        "continue_final_message": flag,
        "store": flag,
    },
    "completions": {
        **_LABELS,
        **_SAMPLING,
        "prompt": prompts,
        "suffix": said(""),
        "echo": flag,
        "n": _n,
        "max_tokens": _max_tokens,
        "logprobs": whole(0, _MAX_LOGPROBS),
        "response_format": chat.response_format,
    },
    "responses": {
        **_LABELS,
        **_SAMPLING,
        "input": items.input_items,
        "instructions": said("system"),
        "max_output_tokens": _max_tokens,
        "max_tool_calls": whole(0),
        "top_logprobs": whole(0, _MAX_LOGPROBS),
        "include": items.include,
        "tools": items.response_tools,
        "tool_choice": chat.tool_choice,
        "parallel_tool_calls": flag,
        "text": items.text_options,
        "reasoning": items.reasoning,
        "truncation": one_of("auto", "disabled"),
        "store": _never_stored,
        "n": _no_n,
    },
    "embeddings": {
        **_LABELS,
        "input": prompts,
        "dimensions": whole(1, 2**16),
        "encoding_format": one_of("float", "base64"),
    },
}
_CONTENT: Mapping[AskKind, str] = {
    "chat": "messages",
    "completions": "prompt",
    "responses": "input",
    "embeddings": "input",
}
