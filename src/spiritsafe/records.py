"""The values that flow: prompts → requests → replies → exchanges. Everything here is frozen."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass

__all__ = [
    "Exchange",
    "FinishReason",
    "Message",
    "Prompt",
    "Reply",
    "Request",
    "Sampling",
    "SparseLogprobs",
    "TeacherInfo",
    "Usage",
    "fields_of",
]

FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "error"]


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a teacher is asked: a conversation that ends with the user's turn."""

    messages: tuple[Message, ...]

    @property
    def id(self) -> str:
        """SHA-256 of the messages, 16 hex digits: the same prompt has the same id everywhere."""
        return _digest([[m.role, m.content] for m in self.messages])[:16]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters, in the chat API's terms. `logprobs` is k, the alternatives per position; 0 asks for none."""

    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One call: a prompt, how to sample, and how many replies."""

    prompt: Prompt
    sampling: Sampling
    n: int = 1

    def hash(self, model: str) -> str:
        """SHA-256 hex of everything that decides the answer; what a paid answer is stored under."""
        messages = [[m.role, m.content] for m in self.prompt.messages]
        return _digest([model, messages, fields_of(self.sampling), self.n])


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. `cached_tokens` is part of the input, `reasoning_tokens` part of the output."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class SparseLogprobs:
    """Top-k log-probabilities of T positions, natural log, at temperature 1.

    Tokens are known by id, by their bytes, or both: an API gives bytes, local weights give ids.

    chosen: (T,) float32, of the sampled token.   top: (T, k) float32, descending; -inf pads short rows.
    ids: (T, k) int32, -1 pads; None if unknown.  token_bytes / top_bytes: the same tokens as bytes.
    """

    chosen: NDArray[np.float32]
    top: NDArray[np.float32]
    ids: NDArray[np.int32] | None = None
    token_bytes: tuple[bytes, ...] | None = None
    top_bytes: tuple[tuple[bytes, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """One completion. `token_ids` includes the end-of-turn token when the teacher produced and reports it."""

    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] | None = None
    logprobs: SparseLogprobs | None = None


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """Who answers. Hashes are None where a served model does not tell.

    marks: whose marks its replies carry, where we make them: key set, epoch and what becomes of greedy requests.
    """

    model: str
    revision: str | None = None
    host: str | None = None
    tokenizer_hash: str | None = None
    template_hash: str | None = None
    marks: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """One request and one of its replies, with everything needed to train on it and to answer for it."""

    request_hash: str
    sample: int
    prompt: Prompt
    reply: Reply
    sampling: Sampling
    usage: Usage
    usd: float
    teacher: TeacherInfo
    split: Literal["train", "holdout"] = "train"
    terms_id: str = "unknown"
    terms_version: str = ""
    watermark_key_id: str | None = None
    created: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.request_hash[:24]}-{self.sample}"


def fields_of(value: Sampling | Usage) -> dict[str, Any]:
    """`asdict` of a flat value, without its deep copies: it runs for every request and every row."""
    return {f: getattr(value, f) for f in value.__slots__}


def _digest(value: object) -> str:
    return hashlib.sha256(_canonical(value).encode("utf-8", "surrogatepass")).hexdigest()


# One encoder for all: `json.dumps` with these options would build a new one for every hash.
_canonical = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode
