"""Rows of JSONL and Parquet files, one after another, their fields named alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from spiritsafe.errors import BadInput

__all__ = ["Row", "jsonl_rows", "parquet_rows", "where_of"]

_TEXTS, _TOKENS = ("text", "completion"), ("tokens", "token_ids")
_PARQUET_ROWS = 1024
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Text, tokens or both, unchecked but for the text. number: from 1; `unit` says of what."""

    number: int
    unit: str
    id: str | None
    text: str | None
    tokens: Any
    prompt_tokens: Any


def where_of(source: str, row: Row) -> str:
    """Where a row stands, for a message."""
    return f"{source}: {row.unit} {row.number}"


def jsonl_rows(source: str, lines: Iterable[bytes]) -> Iterator[Row]:
    """A row a line; blank lines are passed over.

    Raises:
        BadInput: a line is not UTF-8, not a JSON object, or has neither text nor tokens; says which.
    """
    offset = 0
    for number, line in enumerate(lines, 1):
        raw = line.removeprefix(_BOM) if number == 1 else line
        if raw.strip():
            try:
                fields = orjson.loads(raw)
            except orjson.JSONDecodeError as error:
                raise _fault(source, number, offset + len(line) - len(raw), raw, error) from None
            if not isinstance(fields, dict):
                raise BadInput(f"{source}: line {number} is not a JSON object; write rows with text or tokens")
            yield _row(source, number, "line", fields)
        offset += len(line)


def parquet_rows(source: str, file: BinaryIO) -> Iterator[Row]:
    """Rows of a Parquet file, a thousand at a time; token ids as numpy arrays.

    Raises:
        BadInput: not a readable Parquet file, or without a column of text or tokens.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        columns = [n for n in ("id", *_TEXTS, *_TOKENS, "prompt_tokens") if n in names]
        if not set(columns) & {*_TEXTS, *_TOKENS}:
            raise BadInput(
                f"{source}: no column {', '.join([*_TEXTS, *_TOKENS[:-1]])} or {_TOKENS[-1]} among"
                f" {', '.join(names[:20])}; rename the one that holds the text or its token ids"
            )
        number = 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
            cells = {name: _cells(batch.column(name)) for name in columns}
            for index in range(batch.num_rows):
                number += 1
                yield _row(source, number, "row", {name: column[index] for name, column in cells.items()})
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadInput(f"{source}: not a readable Parquet file ({reason}); write it again") from None


def _cells(column: Any) -> list[Any]:
    """A column as Python values; lists of integers as arrays without copying."""
    import pyarrow as pa

    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if lists and pa.types.is_integer(kind.value_type) and not column.flatten().null_count:
        values = column.values.to_numpy(zero_copy_only=False)
        ends = column.offsets.to_pylist()
        valid = column.is_valid().to_pylist()
        return [values[ends[i] : ends[i + 1]] if valid[i] else None for i in range(len(column))]
    return list(column.to_pylist())


def _row(source: str, number: int, unit: str, fields: Mapping[str, Any]) -> Row:
    tokens = next((fields[name] for name in _TOKENS if fields.get(name) is not None), None)
    name = next((name for name in _TEXTS if fields.get(name) is not None), None)
    text = None if name is None else _text(fields[name])
    given = fields.get("id")
    row = Row(number, unit, None if given is None else str(given), text, tokens, fields.get("prompt_tokens"))
    if tokens is None and text is None:
        what = f"its {name} is no text" if name else "has neither text nor tokens"
        raise BadInput(f"{where_of(source, row)}: {what}; a row holds one document as text or as tokens")
    return row


def _text(value: Any) -> str | None:
    """A string, or the contents of a list of messages; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(m, dict) for m in value):
        contents = [m.get("content") for m in value]
        if all(isinstance(content, str) for content in contents):
            return "\n".join(contents)
    return None


def _fault(source: str, number: int, offset: int, raw: bytes, error: Exception) -> BadInput:
    where = f"{source}: line {number}"
    if (at := raw.find(b"\0")) >= 0:
        return BadInput(f"{where} is binary (a zero byte at {offset + at}); give JSONL, text or Parquet")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as fault:
        return BadInput(f"{where} is not UTF-8 at byte {offset + fault.start} of the file; save it as UTF-8")
    return BadInput(f"{where} is not JSON ({error}); write one object a line, with text or tokens")
