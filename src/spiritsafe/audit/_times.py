"""Times as inputs, commitments and transcripts write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

__all__ = ["first_time", "parse_time"]

_TIMES = ("ts", "created", "created_at", "timestamp")


def first_time(texts: Path) -> datetime | None:
    """The earliest time that a row of texts says (ts, created, created_at, timestamp); None where none says any."""
    times = (time for row in _rows(texts) for key in _TIMES if (time := parse_time(row.get(key))) is not None)
    return min(times, default=None)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows as far as they can be read: the test itself says what is wrong with a file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            columns = [name for name in _TIMES if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns) if columns else ():
                yield from batch.to_pylist()
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row


def parse_time(value: Any) -> datetime | None:
    """A time in UTC: Unix seconds, ISO 8601 or a datetime; None for anything else."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None
