"""A whole reply played back as a stream, for replies that existed before their first byte was sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from spiritsafe.wire import SSE_DONE, sse_event

__all__ = ["as_stream"]

_PIECE = re.compile(r"\S+\s*|\s+")
_PASSED_ON = ("id", "created", "model", "system_fingerprint")
_SPOKEN = ("reasoning_content", "reasoning", "content", "refusal")


def as_stream(reply: Mapping[str, Any], *, include_usage: bool = False) -> list[bytes]:
    """The server-sent events of a `chat.completion` or `text_completion`, the last one [DONE].

    Text goes word by word; a choice with log-probabilities or token ids goes in one piece, so that they stay beside
    their tokens. include_usage: as `stream_options.include_usage`, a last chunk with the reply's usage.
    """
    chat = reply.get("object") != "text_completion"
    head = {name: reply[name] for name in _PASSED_ON if name in reply}
    head["object"] = "chat.completion.chunk" if chat else "text_completion"
    usage = {"usage": None} if include_usage else {}
    parts = (part for choice in reply["choices"] for part in (_chat_parts(choice) if chat else _text_parts(choice)))
    events = [sse_event(head | {"choices": [part]} | usage) for part in parts]
    if include_usage:
        events.append(sse_event(head | {"choices": [], "usage": reply.get("usage")}))
    return [*events, SSE_DONE]


def _chat_parts(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    index, message = choice["index"], choice["message"]
    rest = {name: value for name, value in message.items() if name not in _SPOKEN and value}
    yield _chat_part(index, {"role": "assistant", "content": ""} | rest)
    extras = _extras(choice)
    for name in _SPOKEN:
        text = message.get(name)
        if isinstance(text, str) and text:
            whole = extras if name == "content" else {}
            for piece in [text] if whole else _PIECE.findall(text):
                yield _chat_part(index, {name: piece}) | whole
    yield _chat_part(index, {}, choice.get("finish_reason"))


def _chat_part(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _text_parts(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    index, text, extras = choice["index"], choice["text"], _extras(choice)
    for piece in [text] if extras else _PIECE.findall(text):
        yield {"index": index, "text": piece, "logprobs": None, "finish_reason": None} | extras
    yield {"index": index, "text": "", "logprobs": None, "finish_reason": choice.get("finish_reason")}


def _extras(choice: Mapping[str, Any]) -> dict[str, Any]:
    return {name: choice[name] for name in ("logprobs", "token_ids") if choice.get(name)}
