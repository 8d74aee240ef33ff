"""Chat completions as a client sees them: request bodies out, answers in. Pure functions, no sockets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from spiritsafe.records import FinishReason, Reply, Request, SparseLogprobs, Usage

__all__ = ["Completion", "MalformedReply", "completion_bytes", "parse_completion", "request_body", "snippet"]


class Completion(NamedTuple):
    """An answer as read. usage: None if the API does not report it.

    tokenizer_hash, template_hash: whose token ids these are; watermark_key_id: the key the replies are marked with;
        where the server says so (this project's does).
    """

    replies: tuple[Reply, ...]
    usage: Usage | None
    model: str
    tokenizer_hash: str | None = None
    template_hash: str | None = None
    watermark_key_id: str | None = None


_SAID = ("tokenizer_hash", "template_hash", "watermark_key_id")
_ID_TOKEN = "token_id:"  # noqa: S105 — how vLLM writes a token it names by id
_FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_length": "length",
}


class MalformedReply(ValueError):
    """A body that is no chat completion. The message says what is wrong with it, with a snippet."""


def request_body(
    request: Request,
    model: str,
    *,
    token_ids: bool = False,
    tokens_by_id: bool = False,
    limit_field: str = "max_tokens",
) -> dict[str, Any]:
    """The JSON body of a request. Parameters at their default are left out: some APIs refuse fields they don't know.

    token_ids: ask for the reply's `token_ids`, which vLLM and this project's server understand.
    tokens_by_id: have log-probabilities name tokens by id (vLLM gives no bytes then; this project's server does).
    limit_field: `max_completion_tokens` where an API insists on that name.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": m.role, "content": m.content} for m in request.prompt.messages],
        limit_field: sampling.max_tokens,
        "temperature": sampling.temperature,
    }
    if sampling.top_p != 1.0:
        body["top_p"] = sampling.top_p
    if request.n != 1:
        body["n"] = request.n
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = sampling.logprobs
    if token_ids:
        body["return_token_ids"] = True
    if tokens_by_id and sampling.logprobs:
        body["return_tokens_as_token_ids"] = True
    return body


def parse_completion(raw: bytes) -> Completion:
    """Read an answer.

    Raises:
        MalformedReply: not JSON, or not a chat completion with at least one choice.
    """
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise MalformedReply(f"not JSON: {snippet(raw)}") from None
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or not choices:
        raise MalformedReply(f"no choices: {snippet(raw)}")
    try:
        ordered = sorted(choices, key=lambda choice: choice.get("index") or 0)
        replies = tuple(_reply(choice) for choice in ordered)
        usage = _usage(data.get("usage"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MalformedReply(f"not a chat completion ({type(error).__name__}: {error}): {snippet(raw)}") from None
    whose = {key: data[key] for key in _SAID if isinstance(data.get(key), str)}
    return Completion(replies, usage, str(data.get("model") or ""), **whose)


def completion_bytes(replies: Sequence[Reply], usage: Usage, model: str, watermark_key_id: str | None = None) -> bytes:
    """An answer as a chat completion body that `parse_completion` reads back unchanged; local answers are stored so."""
    choices = [
        {
            "index": index,
            "finish_reason": reply.finish_reason,
            "message": {"role": "assistant", "content": reply.text},
            "logprobs": None if reply.logprobs is None else {"content": _entries(reply.logprobs)},
            "token_ids": reply.token_ids,
        }
        for index, reply in enumerate(replies)
    ]
    details = {
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    counts = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
    body = {"model": model, "choices": choices, "usage": counts | details}
    return orjson.dumps(body if watermark_key_id is None else body | {"watermark_key_id": watermark_key_id})


def snippet(raw: bytes, limit: int = 120) -> str:
    """The start of a body on one line, for an error message."""
    text = "".join(c if c.isprintable() else " " for c in raw[: 4 * limit].decode("utf-8", "replace"))
    text = " ".join(text.split())
    return repr(text if len(text) <= limit else text[:limit] + "…") if text else "an empty body"


def _reply(choice: Mapping[str, Any]) -> Reply:
    message = choice["message"]
    text = message.get("content") or ""
    if isinstance(text, list):  # content parts
        text = "".join(part.get("text", "") for part in text)
    if not isinstance(text, str):
        raise TypeError("content is not text")
    token_ids = choice.get("token_ids")
    content = (choice.get("logprobs") or {}).get("content")
    return Reply(
        text=text,
        finish_reason=_FINISH.get(choice.get("finish_reason") or "stop", "error"),
        token_ids=None if token_ids is None else tuple(int(i) for i in token_ids),
        logprobs=_logprobs(content) if content else None,
    )


def _usage(usage: Mapping[str, Any] | None) -> Usage | None:
    if not usage or usage.get("prompt_tokens") is None:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    counts = [int(n) for n in (usage["prompt_tokens"], usage.get("completion_tokens") or 0, cached, reasoning)]
    if min(counts) < 0:
        raise ValueError("negative token counts")
    return Usage(*counts)


def _logprobs(content: list[dict[str, Any]]) -> SparseLogprobs:
    k = max(len(entry.get("top_logprobs") or ()) for entry in content)
    top = np.full((len(content), k), -np.inf, np.float32)
    ids = np.full((len(content), k), -1, np.int32)
    top_bytes: list[tuple[bytes, ...]] = []
    for t, entry in enumerate(content):
        alternatives = sorted(entry.get("top_logprobs") or (), key=_value, reverse=True)
        for j, alternative in enumerate(alternatives):
            top[t, j] = _value(alternative)
            ids[t, j] = _token_id(alternative)
        top_bytes.append(tuple(map(_bytes, alternatives)) + (b"",) * (k - len(alternatives)))
    by_id = bool(k) and bool(((ids >= 0) | np.isneginf(top)).all())
    by_name = any(_is_only_an_id(entry) for entry in content)
    return SparseLogprobs(
        chosen=np.asarray([_value(entry) for entry in content], np.float32),
        top=top,
        ids=ids if by_id else None,
        token_bytes=None if by_name else tuple(map(_bytes, content)),
        top_bytes=None if by_name else tuple(top_bytes),
    )


def _value(entry: Mapping[str, Any]) -> float:
    value = entry["logprob"]
    # APIs write "too small to say" as null or -9999.
    return -math.inf if value is None or value <= -9999.0 else float(value)


def _token_id(entry: Mapping[str, Any]) -> int:
    if (given := entry.get("token_id")) is not None:
        return int(given)
    token = entry["token"]
    return int(token[len(_ID_TOKEN) :]) if token.startswith(_ID_TOKEN) and token[len(_ID_TOKEN) :].isdigit() else -1


def _is_only_an_id(entry: Mapping[str, Any]) -> bool:
    """The token goes by its id, and its bytes are unknown (vLLM then gives the bytes of the id's name)."""
    token: str = entry["token"]
    return token.startswith(_ID_TOKEN) and (entry.get("bytes") is None or bytes(entry["bytes"]) == token.encode())


def _bytes(entry: Mapping[str, Any]) -> bytes:
    given = entry.get("bytes")
    return str(entry["token"]).encode("utf-8", "surrogatepass") if given is None else bytes(given)


def _entries(logprobs: SparseLogprobs) -> list[dict[str, Any]]:
    entries = []
    for t in range(len(logprobs)):
        token = None if logprobs.token_bytes is None else logprobs.token_bytes[t]
        alternatives = [
            _entry(
                logprobs.top[t, j],
                None if logprobs.ids is None else int(logprobs.ids[t, j]),
                None if logprobs.top_bytes is None else logprobs.top_bytes[t][j],
            )
            for j in range(logprobs.top.shape[1])
            if np.isfinite(logprobs.top[t, j])
        ]
        entries.append(_entry(logprobs.chosen[t], None, token) | {"top_logprobs": alternatives})
    return entries


def _entry(value: np.float32, token_id: int | None, token: bytes | None) -> dict[str, Any]:
    # Without bytes a token goes by its id; the chosen one's stands in `token_ids`.
    name = f"{_ID_TOKEN}{'' if token_id is None else token_id}" if token is None else token.decode("utf-8", "replace")
    entry: dict[str, Any] = {
        "token": name,
        "logprob": float(value) if np.isfinite(value) else None,
        "bytes": None if token is None else list(token),
    }
    return entry if token_id is None else entry | {"token_id": token_id}
