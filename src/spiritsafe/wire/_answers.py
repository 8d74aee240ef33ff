"""Chat completions as a server writes them: whole answers and chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spiritsafe.records import FinishReason, SparseLogprobs, Usage

__all__ = ["answer", "answer_choice", "chunk", "chunk_choice", "logprob_entries", "usage_fields"]

_LEAST = -9999.0  # how APIs write a log-probability of minus infinity, which JSON cannot


def answer(
    *,
    request_id: str,
    created: int,
    model: str,
    choices: Sequence[Mapping[str, Any]],
    usage: Usage,
    prompt_token_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """A `chat.completion` object; `created` in Unix seconds."""
    body = {
        "id": request_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": list(choices),
        "usage": usage_fields(usage),
    }
    return body if prompt_token_ids is None else body | {"prompt_token_ids": list(prompt_token_ids)}


def answer_choice(
    index: int,
    text: str,
    finish_reason: FinishReason,
    *,
    logprobs: list[dict[str, Any]] | None = None,
    token_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """One reply of an answer; `logprobs` from `logprob_entries`."""
    choice = {
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": finish_reason,
        "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
    }
    return choice if token_ids is None else choice | {"token_ids": list(token_ids)}


def chunk(
    *,
    request_id: str,
    created: int,
    model: str,
    choices: Sequence[Mapping[str, Any]],
    usage: Usage | None = None,
    show_usage: bool = False,
    prompt_token_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """A `chat.completion.chunk` object. show_usage: the client asked for usage, so every chunk has the field."""
    body: dict[str, Any] = {
        "id": request_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": list(choices),
    }
    if show_usage:
        body["usage"] = None if usage is None else usage_fields(usage)
    return body if prompt_token_ids is None else body | {"prompt_token_ids": list(prompt_token_ids)}


def chunk_choice(
    index: int,
    delta: Mapping[str, Any],
    *,
    finish_reason: FinishReason | None = None,
    logprobs: list[dict[str, Any]] | None = None,
    token_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """One reply's part of a chunk."""
    choice = {
        "index": index,
        "delta": dict(delta),
        "finish_reason": finish_reason,
        "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
    }
    return choice if token_ids is None else choice | {"token_ids": list(token_ids)}


def logprob_entries(logprobs: SparseLogprobs, top: int, token_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """`logprobs.content`: one entry per token, `top` alternatives each.

    logprobs: with bytes, and with ids if `token_ids` is given.
    token_ids: the tokens' ids, to name tokens "token_id:N"; None names them by their text.
    """
    assert logprobs.token_bytes is not None
    assert logprobs.top_bytes is not None
    entries = []
    for t, raw in enumerate(logprobs.token_bytes):
        alternatives = []
        for j, (value, token) in enumerate(zip(logprobs.top[t, :top], logprobs.top_bytes[t][:top], strict=True)):
            by_id = int(logprobs.ids[t, j]) if token_ids is not None and logprobs.ids is not None else None
            alternatives.append(_entry(value, token, by_id))
        chosen = _entry(logprobs.chosen[t], raw, None if token_ids is None else token_ids[t])
        entries.append(chosen | {"top_logprobs": alternatives})
    return entries


def usage_fields(usage: Usage) -> dict[str, Any]:
    """The `usage` object."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _entry(value: np.float32, token: bytes, token_id: int | None) -> dict[str, Any]:
    return {
        "token": token.decode("utf-8", "replace") if token_id is None else f"token_id:{token_id}",
        "logprob": float(value) if np.isfinite(value) else _LEAST,
        "bytes": list(token),
    }
