"""An exported ledger, read back as the rows it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from spiritsafe.errors import BadInput
from spiritsafe.ledger._chain import canonical
from spiritsafe.ledger._check import ChainCheck, Link
from spiritsafe.ledger._checkpoints import Checkpoint
from spiritsafe.ledger._parquet import parquet_lines
from spiritsafe.ledger._read import COLUMNS
from spiritsafe.ledger._rows import PERSONAL
from spiritsafe.ledger._seal import EVENT_FIELDS, REPLY_FIELDS
from spiritsafe.progress import Progress
from spiritsafe.spend import dollars

__all__ = ["check_file"]

_CHAIN = {"seq", "kind", "prev_hash", "hash"}
_EVENT = {*EVENT_FIELDS, *_CHAIN}
_REPLY = set(COLUMNS)


def check_file(path: Path, check: ChainCheck, progress: Progress) -> None:
    """Follow the rows of an exported file.

    Raises:
        BadInput: it cannot be read at all.
    """
    lines = parquet_lines(path, progress) if path.suffix == ".parquet" else _json_lines(path, progress)
    for number, line in lines:
        try:
            if line is None:
                check.problem(None, f"{path}, line {number}: not a JSON object; the file was cut off or damaged")
            elif line["kind"] == "checkpoint":
                check.checkpoint(Checkpoint.read(line))
            else:
                check.follow(_link(line))
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else "a value is of the wrong kind"
            check.problem(None, f"{path}, line {number}: not a ledger row ({why})")


def _link(line: Mapping[str, Any]) -> Link:
    """The row that an exported line was made of.

    Raises:
        KeyError, ValueError, TypeError: it was made of none.
    """
    reply = line["kind"] == "reply"
    faults = []
    if foreign := set(line) - (_REPLY if reply else _EVENT):
        faults.append(f"{', '.join(sorted(foreign))}: not a field of the ledger, nothing vouches for it")
    personal: dict[str, Any] = {}
    salt = None
    if reply:
        payload = {name: line[name] for name in REPLY_FIELDS} | {"personal": dict(line["commitments"])}
        personal = {name: line[name] for name in PERSONAL if line[name] is not None}
        salt = line["salt"]
        if line["usd"] != dollars(line["pico"]):
            faults.append(f"usd is {line['usd']}, but pico says {dollars(line['pico'])}")
    else:
        payload = {name: line[name] for name in EVENT_FIELDS}
    seq, kind = int(line["seq"]), str(line["kind"])
    return Link(
        seq, kind, str(line["prev_hash"]), str(line["hash"]), canonical(payload), {}, salt, personal, tuple(faults)
    )


def _json_lines(path: Path, progress: Progress) -> Iterator[tuple[int, dict[str, Any] | None]]:
    try:
        with path.open("rb") as file:
            size, read = path.stat().st_size, 0
            for number, text in enumerate(file, 1):
                read += len(text)
                if number % 1000 == 0:
                    progress.update("verify", read, size)
                if text.isspace():
                    continue
                try:
                    line = orjson.loads(text)
                except orjson.JSONDecodeError:
                    line = None
                yield number, line if isinstance(line, dict) else None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; give an exported ledger (.jsonl or .parquet)") from None
