"""Benchmark texts from a file, to keep a training set clear of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spiritsafe.errors import BadInput
from spiritsafe.tasks._contamination import HeldOut

__all__ = ["read_held_out"]

_QUESTIONS = ("text", "prompt", "question", "query", "input", "instruction", "problem", "task", "messages")
_ANSWERS = ("completion", "answer", "response", "output", "solution", "target", "canonical_solution")


def read_held_out(path: Path, columns: tuple[str, ...] = ()) -> Iterator[HeldOut]:
    """Stream the texts of a JSONL or Parquet file.

    columns: which hold questions; by default those of the usual names, and answers as well.

    Raises:
        BadInput: the file is missing or malformed (with the line), or has none of the columns.
    """
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else _jsonl(path)
    seen: set[str] = set()
    found = False
    for number, row in enumerate(rows, start=1):
        seen |= row.keys()
        for column in columns or (*_QUESTIONS, *_ANSWERS):
            if text := _text(row.get(column)):
                found = True
                yield HeldOut(f"{path.name} row {number}", text, is_question=bool(columns) or column in _QUESTIONS)
    if not found:
        wanted = ", ".join(columns or (*_QUESTIONS, *_ANSWERS))
        has = ", ".join(sorted(seen)) or "no rows"
        raise BadInput(f"{path}: no text in any of the columns {wanted} (it has {has}); name yours under `columns`")


def _text(value: Any) -> str:
    """A string, or the contents of chat messages but for the system's."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        turns = [m for m in value if isinstance(m, dict) and m.get("role") != "system"]
        return "\n".join(str(m.get("content") or "") for m in turns)
    return ""


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _row(line, f"{path}:{number}")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; give a JSONL or Parquet file of benchmark texts") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: not JSON ({error.msg}); each line must be one object") from None
    if not isinstance(row, dict):
        raise BadInput(f"{where}: expected an object with a text or prompt, found {type(row).__name__}")
    return row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=512):
                yield from batch.to_pylist()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; give a JSONL or Parquet file of benchmark texts") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path}: not a readable Parquet file ({error})") from None
