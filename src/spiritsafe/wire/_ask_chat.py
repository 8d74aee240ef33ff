"""Messages and tools of the chat API: checked, and counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from spiritsafe.wire._ask_types import Ask, FieldError
from spiritsafe.wire._fields import (
    Check,
    bad,
    by_type,
    check_fields,
    counted,
    every,
    fields,
    flag,
    free,
    one_of,
    said,
    text,
    whole,
)

__all__ = [
    "arguments",
    "count_image",
    "functions",
    "messages",
    "prediction",
    "response_format",
    "template_arguments",
    "tool_choice",
    "tools",
]

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_NEEDS_CONTENT = {"system", "developer", "user", "tool"}
_UNCOUNTED_PART = "other parts cannot be counted before they are paid for"
_IMAGE_STARTS = ("https://", "http://", "data:image/")


def count_image(ask: Ask, value: Any) -> None:
    """An image's address, or the image itself in a data URL."""
    if type(value) is not str or not value.startswith(_IMAGE_STARTS):
        bad("an http(s) or data:image URL", value)
    ask.images += 1


def arguments(ask: Ask, value: Any) -> None:
    """Arguments of a tool call: a string of JSON, which some templates parse and write anew, or an object. The call
    they are part of is counted too, with the string as it stands."""
    if type(value) is str:
        try:
            ask.add_json(orjson.loads(value))
        except orjson.JSONDecodeError:
            return
    elif type(value) is not dict:
        bad("a string", value)


_IMAGE = fields({"url": count_image, "detail": one_of("auto", "low", "high", "original")}, "url")
_FUNCTION_CALL = fields({"name": text(), "arguments": arguments}, "name")
_CUSTOM_CALL = fields({"name": text(), "input": text()}, "name")
_CALL = fields(
    {
        "id": text(),
        "index": whole(0),
        "type": one_of("function", "custom"),
        "function": _FUNCTION_CALL,
        "custom": _CUSTOM_CALL,
    }
)
_MESSAGE: Mapping[str, Check] = {
    "role": free,
    "content": free,
    "name": said(""),
    "tool_calls": every(counted(_CALL)),
    "tool_call_id": said("tool"),
    "function_call": counted(_FUNCTION_CALL),
    "refusal": said("assistant"),
    "reasoning": said("assistant"),
    "reasoning_content": said("assistant"),
    "annotations": counted(every(free, pieces=0)),
    "prefix": flag,
}


def _parts_by(role: str) -> Check:
    plain = {kind: fields({"type": free, kind: said(role)}, kind) for kind in ("text", "refusal", "thinking")}
    image = fields({"type": free, "image_url": _IMAGE}, "image_url")
    return every(by_type({**plain, "image_url": image}, _UNCOUNTED_PART))


_PARTS: Mapping[str, Check] = {role: _parts_by(role) for role in _ROLES}


def messages(ask: Ask, value: Any) -> None:
    """Check and count the conversation."""
    if type(value) is not list or not value:
        bad("a list with at least one message", value)
    ask.messages = len(value)
    _every_message(ask, value)


def _one_message(ask: Ask, value: Any) -> None:
    if type(value) is not dict:
        bad("an object", value)
    role, content = value.get("role"), value.get("content")
    if type(role) is not str or role not in _PARTS:
        bad("one of " + ", ".join(_ROLES), role, "role")
    if role == "user":
        ask.turns += 1
    if type(content) is str:
        ask.add_text(role, content)
    elif type(content) is list:
        try:
            _PARTS[role](ask, content)
        except FieldError as error:
            raise error.within("content") from None
    elif content is not None:
        bad("a string or a list of parts", content, "content")
    elif role in _NEEDS_CONTENT:
        raise FieldError("is missing", "content")
    if len(value) > 2 or content is None:
        check_fields(ask, value, _MESSAGE)


_every_message = every(_one_message)

_FUNCTION: Mapping[str, Check] = {"name": text(), "description": text(), "parameters": free, "strict": flag}
_CUSTOM = fields({"name": text(), "description": text(), "format": free}, "name")
tools = counted(
    every(
        by_type(
            {
                "function": fields({"type": free, "function": fields(_FUNCTION, "name")}, "function"),
                "custom": fields({"type": free, "custom": _CUSTOM}, "custom"),
            },
            "other tools run something upstream that is billed apart",
        )
    )
)
"""Tools that the client runs itself."""

functions = counted(every(fields(_FUNCTION, "name")))
"""Tools as they were before `tools`."""

_SCHEMA = fields({"name": text(), "description": text(), "schema": free, "strict": flag}, "name")
response_format = counted(
    by_type(
        {
            "text": fields({"type": free}),
            "json_object": fields({"type": free}),
            "json_schema": fields({"type": free, "json_schema": _SCHEMA}, "json_schema"),
        },
        "other formats are unknown here",
    )
)


def tool_choice(ask: Ask, value: Any) -> None:
    if type(value) is not dict:
        _CHOICES(ask, value)
        return
    ask.add_json(value)


def prediction(ask: Ask, value: Any) -> None:
    """Text the reply is expected to repeat. Tokens of it that are not used may be billed as output."""
    before = ask.text_bytes
    _PREDICTION(ask, value)
    ask.predicted_bytes += ask.text_bytes - before


def _predicted(ask: Ask, value: Any) -> None:
    (_PARTS["assistant"] if type(value) is list else _SAID)(ask, value)


def template_arguments(ask: Ask, value: Any) -> None:
    """Switches of chat templates that turn reasoning on and off; others could write anything into the prompt."""
    check_fields(ask, value, _TEMPLATE_ARGUMENTS)
    ask.add_json(value)


_CHOICES = one_of("none", "auto", "required")
_SAID = said("assistant")
_PREDICTION = fields({"type": one_of("content"), "content": _predicted}, "content")
_TEMPLATE_ARGUMENTS: Mapping[str, Check] = {
    "enable_thinking": flag,
    "thinking": flag,
    "reasoning_effort": text(16),
    "thinking_budget": whole(0),
}
