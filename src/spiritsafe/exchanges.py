"""Exchanges as Parquet, streamed and atomic.

Columns follow what Hugging Face `datasets` and TRL read (`messages`, `prompt`, `completion`), so other tools open the
files unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spiritsafe.errors import BadInput
from spiritsafe.records import (
    Exchange,
    Message,
    Prompt,
    Reply,
    Sampling,
    SparseLogprobs,
    TeacherInfo,
    Usage,
    fields_of,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["open_exchanges", "read_exchanges", "write_exchanges"]


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
        "sampling": json.dumps(fields_of(e.sampling)),
        **fields_of(e.usage),
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
