"""The ledger as a file: whole or not at all, never all in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson

from spiritsafe.errors import BadInput
from spiritsafe.ledger._parquet import ParquetSink
from spiritsafe.ledger._read import read_ledger, span
from spiritsafe.progress import Progress, Silent
from spiritsafe.runs import atomic_file
from spiritsafe.state import Database

__all__ = ["export_ledger"]

_AT_ONCE = 1000


class _Sink(Protocol):
    def write(self, lines: Sequence[Mapping[str, Any]]) -> None: ...
    def close(self) -> None: ...


async def export_ledger(
    db: Database,
    out: Path,
    *,
    since: float | None = None,
    until: float | None = None,
    everything: bool = False,
    personal: bool = True,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write rows to `out`, .jsonl or .parquet, in the order of the chain; how many of each kind.

    since, until: only rows with since ≤ ts < until (Unix seconds).
    everything: events and checkpoints too: only such a file can be verified as complete.
    personal: with the personal fields that are still there, and their salts.

    The file appears when it is complete, mode 0600: it names customers.

    Raises:
        BadInput: another suffix, the folder cannot be written, or a row is damaged.
        SpiritsafeError: .parquet, and pyarrow is not installed.
        Unavailable: the database is away.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise BadInput(f"{out}: write to a file that ends in .jsonl or .parquet")
    if not out.parent.is_dir():
        raise BadInput(f"{out}: there is no folder {out.parent}; create it first")
    progress = progress or Silent()
    first, last = await span(db, since, until)
    counts = {"reply": 0, "event": 0, "checkpoint": 0} if everything else {"reply": 0}
    kinds = ("reply", "event") if everything else ("reply",)
    try:
        with atomic_file(out, 0o600) as file:
            sink: _Sink = ParquetSink(file, everything) if out.suffix == ".parquet" else _JsonSink(file)
            held: list[dict[str, Any]] = []
            signed = first - 1
            async for line in read_ledger(db, since, kinds, until=until, personal=personal):
                held.append(line)
                counts[line["kind"]] += 1
                if len(held) >= _AT_ONCE:
                    sink.write(await _with_checkpoints(db, held, signed, counts) if everything else held)
                    signed = held[-1]["seq"]
                    progress.update("export", line["seq"] - first + 1, last - first + 1)
                    held = []
            sink.write(await _with_checkpoints(db, held, signed, counts) if everything else held)
            sink.close()
    except OSError as error:
        raise BadInput(f"{out}: {error.strerror}; choose another --out") from None
    return counts


async def _with_checkpoints(
    db: Database, lines: list[dict[str, Any]], after: int, counts: dict[str, int]
) -> list[dict[str, Any]]:
    """Each checkpoint right after the row it was signed over."""
    if not lines:
        return lines
    rows = await db.fetch(
        "SELECT * FROM checkpoints WHERE seq > $1 AND seq <= $2 ORDER BY seq", after, lines[-1]["seq"]
    )
    signed = {row["seq"]: {"kind": "checkpoint", **row} for row in rows}
    woven = []
    for line in lines:
        woven.append(line)
        if (checkpoint := signed.get(line["seq"])) is not None:
            woven.append(checkpoint)
            counts["checkpoint"] += 1
    return woven


class _JsonSink:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._file.write(b"".join(orjson.dumps(line) + b"\n" for line in lines))

    def close(self) -> None: ...
