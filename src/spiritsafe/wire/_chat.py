"""Chat completion requests as a server sees them: parsed strictly, so that nothing a client asks for is lost quietly.

A field that would change the answer and is not implemented is refused unless it holds its neutral value; fields that
only label or route a request are ignored; names nobody knows are refused, since they are usually misspelt.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from spiritsafe.records import Message
from spiritsafe.wire._errors import ApiError

__all__ = ["ChatRequest", "parse_chat_request"]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MAX_STOP = 16

_HARMLESS = {
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
# What each unimplemented field may hold without changing the answer (null always may).
_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "best_of": lambda v: v == 1,
    "frequency_penalty": lambda v: v == 0,
    "presence_penalty": lambda v: v == 0,
    "repetition_penalty": lambda v: v == 1,
    "min_p": lambda v: v == 0,
    "top_k": lambda v: v in (0, -1),
    "logit_bias": lambda v: v == {},
    "tools": lambda v: v == [],
    "functions": lambda v: v == [],
    "tool_choice": lambda v: v in ("none", "auto"),
    "function_call": lambda v: v in ("none", "auto"),
    "response_format": lambda v: v == {"type": "text"},
    "modalities": lambda v: v == ["text"],
    "audio": lambda v: False,
    "web_search_options": lambda v: False,
    "reasoning_effort": lambda v: v == "none",
    "verbosity": lambda v: v == "medium",
    "ignore_eos": lambda v: v is False,
    "min_tokens": lambda v: v == 0,
    "chat_template_kwargs": lambda v: v == {},
}
_USED = {
    "model",
    "messages",
    "n",
    "seed",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "logprobs",
    "top_logprobs",
    "stream",
    "stream_options",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "watermark_key_id",
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A valid request. `max_tokens` None: as many as fit. `top_logprobs` counts only if `logprobs` is true.

    return_token_ids: answer with `token_ids` and `prompt_token_ids`.  tokens_as_ids: name tokens in log-probabilities
    "token_id:N" (both as vLLM does).  watermark_key_id: the id of the key to mark with (this project's own field).
    """

    model: str
    messages: tuple[Message, ...]
    n: int = 1
    seed: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    stream: bool = False
    include_usage: bool = False
    return_token_ids: bool = False
    tokens_as_ids: bool = False
    watermark_key_id: str | None = None


def parse_chat_request(body: bytes, *, max_logprobs: int = 20, max_n: int = 128) -> ChatRequest:
    """Read the body of POST /v1/chat/completions.

    Raises:
        ApiError: status 400; the message says which field and what it may be.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ApiError(400, "the body must be a JSON object")
    data = {key: value for key, value in data.items() if value is not None}
    for key, value in data.items():
        if key not in _USED and key not in _HARMLESS:
            _check_unused(key, value)
    fields = _Fields(data)
    stream = fields.flag("stream")
    logprobs, top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, max_logprobs) or 0
    if top and not logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    temperature, top_p = fields.number("temperature", 0, 2), fields.number("top_p", 0, 1)
    if top_p == 0:
        raise ApiError(400, "top_p must be above 0; use temperature 0 for greedy decoding", param="top_p")
    limit, older = fields.whole("max_completion_tokens", 1, None), fields.whole("max_tokens", 1, None)
    return ChatRequest(
        model=fields.text("model"),
        messages=_messages(data.get("messages")),
        n=fields.whole("n", 1, max_n) or 1,
        seed=fields.whole("seed", -(2**63), 2**63 - 1),
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        max_tokens=older if limit is None else limit,
        stop=_stop(data.get("stop", [])),
        logprobs=logprobs,
        top_logprobs=top,
        stream=stream,
        include_usage=_include_usage(data.get("stream_options"), stream),
        return_token_ids=fields.flag("return_token_ids"),
        tokens_as_ids=fields.flag("return_tokens_as_token_ids"),
        watermark_key_id=fields.maybe_text("watermark_key_id"),
    )


def _check_unused(key: str, value: Any) -> None:
    neutral = _NEUTRAL.get(key)
    if neutral is None:
        near = difflib.get_close_matches(key, _USED | _HARMLESS | set(_NEUTRAL), n=1)
        raise ApiError(
            400, f"unknown field {key}" + (f"; did you mean {near[0]}?" if near else "; leave it out"), param=key
        )
    if not neutral(value):
        raise ApiError(400, f"{key} is not supported here; leave it out", param=key, code="unsupported_parameter")


class _Fields:
    """Typed access to the fields of a request; null and absent are the same."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def flag(self, name: str) -> bool:
        return self._typed(name, bool, "true or false") or False

    def text(self, name: str) -> str:
        value = self._typed(name, str, "a string")
        if not value:
            raise ApiError(400, f"{name} is missing", param=name)
        return value

    def maybe_text(self, name: str) -> str | None:
        return self._typed(name, str, "a string")

    def whole(self, name: str, least: int, most: int | None) -> int | None:
        what = f"a whole number, at least {least}" if most is None else f"a whole number from {least} to {most}"
        value = self._typed(name, int, what)
        if value is not None and (value < least or (most is not None and value > most)):
            raise ApiError(400, f"{name} must be {what}; got {value}", param=name)
        return value

    def number(self, name: str, least: float, most: float) -> float | None:
        what = f"a number from {least} to {most}"
        value = self._data.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ApiError(400, f"{name} must be {what}; got {_short(value)}", param=name)
        assert math.isfinite(value)
        return float(value)

    def _typed(self, name: str, kind: type[T], what: str) -> T | None:
        value = self._data.get(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ApiError(400, f"{name} must be {what}; got {_short(value)}", param=name)
        return value


T = TypeVar("T")


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ApiError(400, "messages must be a list with at least one message", param="messages")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise ApiError(400, f"{where} must be an object", param=where)
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise ApiError(
            400, f"{where}.role must be one of {', '.join(_ROLES)}; got {_short(role)}", param=f"{where}.role"
        )
    if item.get("tool_calls") or item.get("function_call"):
        raise ApiError(400, f"{where}: tool calls are not supported here", param=where, code="unsupported_parameter")
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise ApiError(400, f"{where}.content must be a string or a list of text parts", param=f"{where}.content")
    return Message(_ROLES[role], content)


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise ApiError(
            400, f'{where} must be {{"type": "text", "text": …}}; other parts are not supported', param=where
        )
    return str(part["text"])


def _stop(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or len(listed) > _MAX_STOP or not all(isinstance(s, str) and s for s in listed):
        raise ApiError(400, f"stop must be a string or a list of up to {_MAX_STOP} strings, none empty", param="stop")
    return tuple(listed)


def _include_usage(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options")
    if not isinstance(value, dict) or not isinstance(value.get("include_usage", False), bool):
        raise ApiError(400, "stream_options.include_usage must be true or false", param="stream_options")
    return bool(value.get("include_usage", False))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
