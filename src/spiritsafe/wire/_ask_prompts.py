"""Prompts of the completions and embeddings APIs: checked, and counted."""

from __future__ import annotations

from typing import Any

from spiritsafe.wire._ask_types import Ask, FieldError
from spiritsafe.wire._fields import bad, make_whole

__all__ = ["prompts"]

_MAX_PROMPTS = 2048
_MAX_TOKEN_ID = 2**31 - 1


def prompts(ask: Ask, value: Any) -> None:
    """A text, a list of texts, token ids, or a list of those."""
    if type(value) is str:
        ask.add_text("user", value)
    elif type(value) is not list or not value:
        bad("a text, a list of texts, a list of token ids, or a list of such lists", value)
    elif type(value[0]) in (int, float):
        _ids(ask, value)
    elif len(value) > _MAX_PROMPTS:
        raise FieldError(f"has {len(value)} prompts; send at most {_MAX_PROMPTS}")
    else:
        first = type(value[0])
        for index, item in enumerate(value):
            if type(item) is not first or first not in (str, list):
                bad("a text or a list of token ids, like its neighbours", item, f"[{index}]")
            if first is str:
                ask.add_text("user", item)
            else:
                _ids(ask, item, f"[{index}]")
        ask.prompts = len(value)
    ask.messages = ask.turns = ask.prompts
    ask.pieces += ask.prompts


def _ids(ask: Ask, value: list[Any], path: str = "") -> None:
    if not value or not make_whole(value) or not all(0 <= item <= _MAX_TOKEN_ID for item in value):
        raise FieldError("must be a list of token ids, at least one", path)
    ask.token_ids += len(value)
    ask.text_bytes += len(value)
    if ask.ids is None:
        ask.ids = value
