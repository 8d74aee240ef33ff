"""What a reply or a piece of a stream holds: the texts a model wrote, and what the server says it used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from spiritsafe.wire import AskKind

__all__ = ["Reported", "choice_texts", "reported_usage", "written"]

_TEXTS = ("content", "text", "reasoning", "reasoning_content", "thinking", "refusal", "name", "arguments", "input")
_HOLDERS = ("content", "reasoning_details", "summary", "tool_calls")


class Reported(NamedTuple):
    """The counts a server gives. None: absent, or no count."""

    tokens_in: int | None
    tokens_out: int | None
    cached: int
    reasoning: int


def reported_usage(data: dict[str, Any]) -> Reported | None:
    """The `usage` of a reply, a chunk, or the response within an event; None if there is none."""
    usage = data.get("usage")
    if usage is None and isinstance(response := data.get("response"), dict):
        usage = response.get("usage")
    if not isinstance(usage, dict):
        return None
    cached = _detail(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    reasoning = _detail(usage, ("completion_tokens_details", "output_tokens_details", None), "reasoning_tokens")
    return Reported(
        _count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        _count(usage.get("completion_tokens", usage.get("output_tokens"))),
        cached,
        reasoning,
    )


def written(kind: AskKind, data: dict[str, Any]) -> list[str]:
    """The texts a model wrote in a whole reply: content, reasoning, tool calls."""
    texts: list[str] = []
    for piece in _dicts(data.get("output" if kind == "responses" else "choices")):
        if kind == "responses":
            _gather(piece, texts, 0)
        else:
            texts += choice_texts(piece)
    return texts


def choice_texts(choice: dict[str, Any]) -> list[str]:
    """The same, of one choice of a reply or a chunk."""
    texts: list[str] = []
    message = choice.get("delta", choice.get("message"))
    _gather(message if isinstance(message, dict) else {"text": choice.get("text")}, texts, 0)
    return texts


def _gather(piece: dict[str, Any], texts: list[str], depth: int) -> None:
    texts += [text for name in _TEXTS if isinstance(text := piece.get(name), str) and text]
    if depth < 3:  # a message, its tool calls, their functions
        for name in _HOLDERS:
            for part in _dicts(piece.get(name)):
                _gather(part, texts, depth + 1)
        for name in ("function", "custom", "function_call"):
            if isinstance(call := piece.get(name), dict):
                _gather(call, texts, depth + 1)


def _detail(usage: dict[str, Any], holders: Iterable[str | None], name: str) -> int:
    """A detail of the counts; None among the holders: SGLang gives some beside the counts."""
    for holder in holders:
        details = usage if holder is None else usage.get(holder)
        if isinstance(details, dict) and (count := _count(details.get(name))) is not None:
            return count
    return 0


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
