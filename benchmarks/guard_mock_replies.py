"""What the mock answers: modes, calls, and the bodies and events that fit them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any

import orjson

_REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests"}


@dataclass(frozen=True)
class Mode:
    """How to answer.

    prompt, completion: tokens of usage (completion per choice, at most the max_tokens asked for).  chunks: deltas of a
    stream, `interval_ms` apart.  delay_ms: before the first byte.  split: bytes a write, 0 for whole writes.  status:
    answer with this error.  mb: size of what is huge.
    """

    fault: str = ""
    status: int = 200
    delay_ms: float = 0
    chunks: int = 8
    interval_ms: float = 0
    prompt: int = 12
    completion: int = 40
    split: int = 0
    mb: float = 16


@lru_cache(1024)
def mode_of(text: str) -> Mode:
    kinds = {f.name: type(f.default) for f in fields(Mode)}
    given = dict(part.split("=", 1) for part in text.split(",")) if text else {}
    return Mode(**{name: kinds[name](value) for name, value in given.items()})


@dataclass
class Call:
    """A completion that was asked for."""

    mode: Mode
    kind: str
    body: dict[str, Any]
    headers: dict[str, str]
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    tokens: int = 0
    model: str = "mock"
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, mode: Mode, kind: str, raw: bytes, headers: dict[str, str]) -> Call:
        body = orjson.loads(raw) if raw else {}
        options = body.get("stream_options") or {}
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens") or 10**9
        n = body.get("n") or 1
        call = cls(mode, kind, body, headers, bool(body.get("stream")), bool(options.get("include_usage")), n)
        call.tokens = min(mode.completion, limit)
        call.model = body.get("model", "mock")
        if "watermark_key_id" in body:
            call.extra = {"watermark_key_id": body["watermark_key_id"]}
        return call

    def usage(self) -> dict[str, Any]:
        prompt, completion = self.mode.prompt, self.tokens * self.n
        if self.kind == "responses":
            return {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}
        if self.kind == "embeddings":
            return {"prompt_tokens": prompt, "total_tokens": prompt}
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def text(self) -> str:
        return " ".join(["word"] * self.tokens)

    def whole(self) -> dict[str, Any]:
        """The body of an answer in one piece."""
        if self.kind == "embeddings":
            asked = self.body.get("input")
            count = len(asked) if isinstance(asked, list) else 1
            data = [{"object": "embedding", "index": i, "embedding": [0.0] * 8} for i in range(count)]
            return {"object": "list", "model": self.model, "data": data, "usage": self.usage()}
        if self.kind == "responses":
            content = [{"type": "output_text", "text": self.text(), "annotations": []}]
            message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
            return {
                "id": "resp_1", "object": "response", "created_at": 0, "status": "completed", "model": self.model,
                "output": [message], "usage": self.usage(),
            }  # fmt: skip
        chat = self.kind == "chat/completions"
        said = {"message": {"role": "assistant", "content": self.text()}} if chat else {"text": self.text()}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": self.model,
            "choices": [{"index": i, **said, "logprobs": None, "finish_reason": "stop"} for i in range(self.n)],
            "usage": self.usage(),
            **self.extra,
        }

    def events(self) -> list[bytes]:
        """The events of a stream, without [DONE]: `chunks` deltas that share the tokens, the finish, and usage."""
        if self.kind == "responses":
            done = {"type": "response.completed", "response": self.whole()}
            deltas = [{"type": "response.output_text.delta", "delta": piece} for piece in self._pieces()]
            return [event(data) for data in [*deltas, done]]
        chat = self.kind == "chat/completions"
        kind = "chat.completion.chunk" if chat else "text_completion"
        base = {"id": "chatcmpl-1", "object": kind, "created": 0, "model": self.model, **self.extra}
        events = []
        for i in range(self.n):
            for at, piece in enumerate(self._pieces()):
                role = {"role": "assistant"} if at == 0 else {}
                said = {"delta": role | {"content": piece}} if chat else {"text": piece}
                events.append({**base, "choices": [{"index": i, **said, "finish_reason": None}]})
            last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
            events.append({**base, "choices": [{"index": i, **last, "finish_reason": "stop"}]})
        if self.include_usage:
            events.append({**base, "choices": [], "usage": self.usage()})
        return [event(data) for data in events]

    def _pieces(self) -> list[str]:
        """The text in `chunks` parts of whole words (fewer where there are fewer words)."""
        words = [f"word{' ' if at + 1 < self.tokens else ''}" for at in range(self.tokens)]
        parts = max(1, min(self.mode.chunks, len(words)))
        cuts = [len(words) * at // parts for at in range(parts + 1)]
        return ["".join(words[a:b]) for a, b in pairwise(cuts)]


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def head(status: int, content_type: str = "application/json", length: int | None = None, **headers: str) -> bytes:
    """A response's head; chunked without a length."""
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    reason = _REASONS.get(status, "Error")
    return f"HTTP/1.1 {status} {reason}\r\ncontent-type: {content_type}\r\n{framing}\r\n{more}\r\n".encode()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
