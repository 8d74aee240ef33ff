"""The most tokens a question can take, whatever the tokenizer."""

from __future__ import annotations

from spiritsafe.records import Prompt

__all__ = ["bytes_of"]

_TURN = 16


def bytes_of(prompt: Prompt) -> int:
    """Bytes of the messages and room for a template: no byte-level tokenizer makes more tokens of them."""
    return _TURN + sum(_TURN + len(message.content.encode("utf-8", "replace")) for message in prompt.messages)
