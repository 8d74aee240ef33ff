"""The values that flow: prompts → requests → replies → exchanges, and exchanges as Parquet.

Everything here is a frozen value. Parquet columns follow what Hugging Face `datasets` and TRL read
(`messages`, `prompt`, `completion`), so other tools open the files unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    "open_exchanges",
    "read_exchanges",
    "write_exchanges",
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
        return _digest([model, messages, _fields(self.sampling), self.n])


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
    """Who answers. Hashes are None where a served model does not tell."""

    model: str
    revision: str | None = None
    host: str | None = None
    tokenizer_hash: str | None = None
    template_hash: str | None = None


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


def _fields(value: Sampling | Usage) -> dict[str, Any]:
    """`asdict` of a flat value, without its deep copies: it runs for every request and every row."""
    return {f: getattr(value, f) for f in value.__slots__}


def _digest(value: object) -> str:
    return hashlib.sha256(_canonical(value).encode("utf-8", "surrogatepass")).hexdigest()


# One encoder for all: `json.dumps` with these options would build a new one for every hash.
_canonical = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


# ── Parquet ──────────────────────────────────────────────────────────────────────────────────────


def _schema() -> pa.Schema:
    import pyarrow as pa

    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return pa.schema(
        [
            ("id", pa.string()),
            ("request_hash", pa.string()),
            ("sample", pa.int32()),
            ("prompt_id", pa.string()),
            ("messages", message),
            ("prompt", message),
            ("completion", message),
            ("finish_reason", pa.string()),
            ("token_ids", pa.list_(pa.int32())),
            ("chosen_logprobs", pa.list_(pa.float32())),
            ("top_k", pa.int32()),
            ("top_logprobs", pa.list_(pa.float32())),
            ("top_ids", pa.list_(pa.int32())),
            ("token_bytes", pa.list_(pa.binary())),
            ("top_bytes", pa.list_(pa.list_(pa.binary()))),
            ("sampling", pa.string()),
            ("input_tokens", pa.int64()),
            ("output_tokens", pa.int64()),
            ("cached_tokens", pa.int64()),
            ("reasoning_tokens", pa.int64()),
            ("usd", pa.float64()),
            ("teacher", pa.string()),
            ("teacher_revision", pa.string()),
            ("teacher_host", pa.string()),
            ("tokenizer_hash", pa.string()),
            ("template_hash", pa.string()),
            ("split", pa.string()),
            ("terms_id", pa.string()),
            ("terms_version", pa.string()),
            ("watermark_key_id", pa.string()),
            ("created", pa.string()),
            ("extra", pa.string()),
        ],
        metadata={"spiritsafe_schema": "exchanges/1"},
    )


def write_exchanges(path: Path, exchanges: Iterable[Exchange], batch: int = 512) -> int:
    """Write exchanges as Parquet, streaming and atomically; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    partial = path.with_name(path.name + ".partial")
    rows: list[dict[str, Any]] = []
    written = 0
    with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for exchange in exchanges:
            rows.append(_to_row(exchange))
            if len(rows) == batch:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                written += len(rows)
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        written += len(rows)
    partial.replace(path)
    return written


def open_exchanges(path: Path) -> pq.ParquetFile:
    """An exchanges file, its columns checked, for whoever reads columns rather than exchanges. A context manager.

    Raises:
        BadInput: the file is missing, is not Parquet, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; run `spiritsafe collect` first") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path}: not a readable Parquet file ({error}); restore it or collect again") from None
    missing = set(_schema().names) - set(file.schema_arrow.names)
    if missing:
        file.close()
        raise BadInput(f"{path}: not an exchanges file, it lacks the columns {', '.join(sorted(missing))}")
    return file


def read_exchanges(path: Path) -> Iterator[Exchange]:
    """Stream exchanges from Parquet.

    Raises:
        BadInput: the file is missing, is not Parquet, or lacks a column.
    """
    with open_exchanges(path) as file:
        for record_batch in file.iter_batches(batch_size=512):
            for row in record_batch.to_pylist():
                yield _from_row(row)


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _to_row(e: Exchange) -> dict[str, Any]:
    completion = [{"role": "assistant", "content": e.reply.text}]
    logprobs = e.reply.logprobs
    return {
        "id": e.id,
        "request_hash": e.request_hash,
        "sample": e.sample,
        "prompt_id": e.prompt.id,
        "messages": _messages(e.prompt.messages) + completion,
        "prompt": _messages(e.prompt.messages),
        "completion": completion,
        "finish_reason": e.reply.finish_reason,
        "token_ids": None if e.reply.token_ids is None else list(e.reply.token_ids),
        "chosen_logprobs": None if logprobs is None else logprobs.chosen,
        "top_k": None if logprobs is None else logprobs.top.shape[1],
        "top_logprobs": None if logprobs is None else logprobs.top.ravel(),
        "top_ids": None if logprobs is None or logprobs.ids is None else logprobs.ids.ravel(),
        "token_bytes": None if logprobs is None else logprobs.token_bytes,
        "top_bytes": None if logprobs is None else logprobs.top_bytes,
        "sampling": json.dumps(_fields(e.sampling)),
        **_fields(e.usage),
        "usd": e.usd,
        "teacher": e.teacher.model,
        "teacher_revision": e.teacher.revision,
        "teacher_host": e.teacher.host,
        "tokenizer_hash": e.teacher.tokenizer_hash,
        "template_hash": e.teacher.template_hash,
        "split": e.split,
        "terms_id": e.terms_id,
        "terms_version": e.terms_version,
        "watermark_key_id": e.watermark_key_id,
        "created": e.created,
        "extra": json.dumps(e.extra),
    }


def _from_row(row: dict[str, Any]) -> Exchange:
    sampling = json.loads(row["sampling"])
    sampling["stop"] = tuple(sampling["stop"])
    return Exchange(
        request_hash=row["request_hash"],
        sample=row["sample"],
        prompt=Prompt(tuple(Message(m["role"], m["content"]) for m in row["prompt"])),
        reply=Reply(
            text=row["completion"][0]["content"],
            finish_reason=row["finish_reason"],
            token_ids=None if row["token_ids"] is None else tuple(row["token_ids"]),
            logprobs=_logprobs_from_row(row),
        ),
        sampling=Sampling(**sampling),
        usage=Usage(row["input_tokens"], row["output_tokens"], row["cached_tokens"], row["reasoning_tokens"]),
        usd=row["usd"],
        teacher=TeacherInfo(
            row["teacher"],
            row["teacher_revision"],
            row["teacher_host"],
            row["tokenizer_hash"],
            row["template_hash"],
        ),
        split=row["split"],
        terms_id=row["terms_id"],
        terms_version=row["terms_version"],
        watermark_key_id=row["watermark_key_id"],
        created=row["created"],
        extra=json.loads(row["extra"]),
    )


def _logprobs_from_row(row: dict[str, Any]) -> SparseLogprobs | None:
    if row["chosen_logprobs"] is None:
        return None
    shape = (len(row["chosen_logprobs"]), row["top_k"])
    ids, token_bytes, top_bytes = row["top_ids"], row["token_bytes"], row["top_bytes"]
    return SparseLogprobs(
        chosen=np.asarray(row["chosen_logprobs"], np.float32),
        top=np.asarray(row["top_logprobs"], np.float32).reshape(shape),
        ids=None if ids is None else np.asarray(ids, np.int32).reshape(shape),
        token_bytes=None if token_bytes is None else tuple(token_bytes),
        top_bytes=None if top_bytes is None else tuple(tuple(r) for r in top_bytes),
    )
