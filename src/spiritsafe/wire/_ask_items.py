"""Input items and tools of the responses API: checked, and counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spiritsafe.wire._ask_chat import arguments, count_image
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
    listed,
    one_of,
    said,
    text,
    unsupported,
)

__all__ = ["include", "input_items", "reasoning", "response_tools", "text_options"]

_ROLES = ("system", "developer", "user", "assistant")
_STATUS = one_of("in_progress", "completed", "incomplete")
_UNCOUNTED_PART = "other parts cannot be counted before they are paid for"


def _parts_by(role: str) -> Check:
    # log-probabilities in an item are echoed from an earlier reply; they are no part of the prompt
    texts = fields({"type": free, "text": said(role), "annotations": counted(every(free, pieces=0)), "logprobs": free})
    return every(
        by_type(
            {
                "input_text": fields({"type": free, "text": said(role)}, "text"),
                "output_text": texts,
                "refusal": fields({"type": free, "refusal": said(role)}, "refusal"),
                "input_image": fields(
                    {"type": free, "image_url": count_image, "detail": one_of("auto", "low", "high", "original")},
                    "image_url",
                ),
            },
            _UNCOUNTED_PART,
        )
    )


_PARTS: Mapping[str, Check] = {role: _parts_by(role) for role in _ROLES}
_MESSAGE: Mapping[str, Check] = {
    "type": one_of("message"),
    "role": free,
    "content": free,
    "id": text(),
    "status": _STATUS,
    "phase": one_of("commentary", "final_answer"),
}


def _message(ask: Ask, value: Any) -> None:
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
    else:
        bad("a string or a list of parts", content, "content")
    check_fields(ask, value, _MESSAGE)


def _output(ask: Ask, value: Any) -> None:
    if type(value) is str:
        ask.add_text("tool", value)
    else:
        _TOOL_PARTS(ask, value)


def _thought(kind: str) -> Check:
    return every(fields({"type": one_of(kind), "text": said("assistant")}, "text"))


_TOOL_PARTS = _parts_by("tool")
_HEAD: Mapping[str, Check] = {"type": free, "id": text(), "status": _STATUS}
_CALLED: Mapping[str, Check] = {**_HEAD, "call_id": text(), "name": text(), "namespace": text()}
_RESULT = fields(
    {**_HEAD, **dict.fromkeys(("call_id", "name", "namespace"), said("tool")), "output": _output}, "output"
)
_ITEMS: Mapping[str, Check] = {
    "message": _message,
    "function_call": counted(fields({**_CALLED, "arguments": arguments}, "name")),
    "function_call_output": _RESULT,
    "custom_tool_call": counted(fields({**_CALLED, "input": text()}, "name")),
    "custom_tool_call_output": _RESULT,
    "reasoning": fields(
        {
            "type": free,
            "id": text(),
            "status": _STATUS,
            "summary": _thought("summary_text"),
            "content": _thought("reasoning_text"),
            "encrypted_content": said(""),
        }
    ),
}
_typed_item = by_type(_ITEMS, "other items refer to context this gateway does not see, or to tools that run upstream")


def input_items(ask: Ask, value: Any) -> None:
    """Check and count the input: one text, or a list of items."""
    if type(value) is str:
        ask.add_text("user", value)
        ask.messages = ask.turns = 1
        ask.pieces += 1
        return
    if type(value) is not list or not value:
        bad("a string or a list with at least one item", value)
    ask.messages = len(value)
    _items(ask, value)


def _item(ask: Ask, value: Any) -> None:
    if type(value) is dict and value.get("type") is None and "role" in value:
        _message(ask, value)
    else:
        _typed_item(ask, value)


_items = every(_item)

_TOOL: Mapping[str, Check] = {"type": free, "name": text(), "description": text()}
response_tools = counted(
    every(
        by_type(
            {
                "function": fields({**_TOOL, "parameters": free, "strict": flag, "output_schema": free}, "name"),
                "custom": fields({**_TOOL, "format": free}, "name"),
            },
            "other tools run something upstream that is billed apart",
        )
    )
)
"""Tools that the client runs itself."""

_EFFORT = one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")
_SUMMARY = one_of("auto", "concise", "detailed")
reasoning = fields(
    {
        "effort": _EFFORT,
        "summary": _SUMMARY,
        "generate_summary": _SUMMARY,
        "context": one_of("auto", "current_turn", "all_turns"),
        "mode": one_of("standard"),
    }
)
"""How much to reason. Mode pro, which draws several replies, is refused: its cost cannot be bounded."""

_SCHEMA = {"type": free, "name": text(), "description": text(), "schema": free, "strict": flag}
text_options = fields(
    {
        "format": counted(
            by_type(
                {
                    "text": fields({"type": free}),
                    "json_object": fields({"type": free}),
                    "json_schema": fields(_SCHEMA, "name", "schema"),
                },
                "other formats are unknown here",
            )
        ),
        "verbosity": one_of("low", "medium", "high"),
    }
)

_INCLUDES = ("message.output_text.logprobs", "message.input_image.image_url", "reasoning.encrypted_content")


def include(ask: Ask, value: Any) -> None:
    _names(ask, value)
    for index, name in enumerate(value):
        if name not in _INCLUDES:
            unsupported(f"may be {', '.join(_INCLUDES)}: the rest belongs to tools that run upstream", f"[{index}]")


_names = listed(str, "names", most=16)
