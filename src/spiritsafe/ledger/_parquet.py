"""Exported rows as a Parquet table: one column a field, structured values as JSON text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.ledger._read import COLUMNS
from spiritsafe.ledger._seal import EVENT_FIELDS
from spiritsafe.progress import Progress

__all__ = ["ParquetSink", "parquet_lines"]

_JSON = {"features", "commitments", "data"}
_FLOATS = {"ts", "usd", "latency_ms", "temperature", "at"}
_INTEGERS = {"tokens_in", "tokens_out", "n", "logprobs", "turns", "account_slot", "asn", "seq", "pico"}
_CHECKPOINT = ("seq", "hash", "at", "public_key", "signature")
_OF_KIND = {"reply": COLUMNS, "event": (*EVENT_FIELDS, "seq", "kind", "prev_hash", "hash")}
_ALL = tuple(dict.fromkeys((*COLUMNS, *EVENT_FIELDS, *_CHECKPOINT)))
_BATCH = 10_000


class ParquetSink:
    """Writes lines in row groups. everything: with the columns of events and checkpoints."""

    def __init__(self, file: BinaryIO, everything: bool) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            raise SpiritsafeError(
                "Parquet needs the package pyarrow: pip install pyarrow, or export to a .jsonl file"
            ) from None
        types = {name: pa.float64() for name in _FLOATS} | {name: pa.int64() for name in _INTEGERS}
        types["stream"] = pa.bool_()
        names = _ALL if everything else COLUMNS
        self._pa, self._schema = pa, pa.schema([(name, types.get(name, pa.string())) for name in names])
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")
        self._held: list[Mapping[str, Any]] = []

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._held.extend(lines)
        if len(self._held) >= _BATCH:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        columns = {}
        for field in self._schema:
            values = [line.get(field.name) for line in self._held]
            if field.name in _JSON:
                values = [None if value is None else orjson.dumps(value).decode() for value in values]
            columns[field.name] = self._pa.array(values, field.type)
        self._writer.write_table(self._pa.table(columns, schema=self._schema))
        self._held.clear()


def parquet_lines(path: Path, progress: Progress) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number and line, as they were written.

    Raises:
        BadInput: not such a file.
        SpiritsafeError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise SpiritsafeError("Parquet needs the package pyarrow: pip install pyarrow") from None
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _line(row)
                progress.update("verify", number, file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None


def _line(row: dict[str, Any]) -> dict[str, Any] | None:
    names = _OF_KIND.get(row.get("kind", ""), (*_CHECKPOINT, "kind"))
    try:
        return {
            name: orjson.loads(row[name]) if name in _JSON and row[name] is not None else row[name]
            for name in names
            if name in row
        }
    except orjson.JSONDecodeError:
        return None
