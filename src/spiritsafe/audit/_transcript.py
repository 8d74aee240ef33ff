"""What was asked and what came back: one canonical JSON object a line, each bound to the one before it by a hash.

A line is `{"n", "prev", …, "hash"}` with `hash = SHA-256(canonical JSON of the line without "hash")`, sorted keys, no
spaces, ASCII. The first `prev` is the plan's hash, so a transcript belongs to one plan. Nobody can change, drop or
insert a line without changing every hash after it; cutting lines off the end shows in the plan's count of items.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from spiritsafe.audit._types import Record
from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.ledger import canonical_json

__all__ = ["Chain", "Transcript", "read_chain", "read_transcript"]

_LONGEST_LINE = 32 << 20
_LINK = ("n", "prev", "hash")
_FIELDS = frozenset(("test", "item", "ts", "attempt", "asked", "got", "error"))


class Chain:
    """A hash-chained JSONL file that is being written. Not for several threads or processes at once.

    What `append` returned from is on disk. A process that dies in between leaves at most a torn last line, which the
    next `open` cuts off.
    """

    def __init__(self, path: Path, first_prev: str) -> None:
        self.path = path
        self._prev, self._n = first_prev, 0
        self._fd = -1

    @classmethod
    def open(cls, path: Path, first_prev: str) -> tuple[Chain, list[dict[str, Any]]]:
        """Open for appending, and what is there already, without the links.

        Raises:
            BadInput: a line does not follow from the one before it, or the file cannot be read.
        """
        chain = cls(path, first_prev)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            chain._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            whole = _cut_torn(chain._fd)
            _sync_folder(path.parent)
        except OSError as error:
            raise BadInput(f"{path}: cannot be opened ({error.strerror}); check the folder") from None
        entries = []
        for link, entry in _entries(path, first_prev, whole):
            entries.append(entry)
            chain._prev, chain._n = link, chain._n + 1
        return chain, entries

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Add lines, in one write and one fsync.

        Raises:
            ValueError: an entry holds a number that is not finite, or something that is not JSON; nothing is written.
            SpiritsafeError: the disk does not take them; what was there before is whole.
        """
        lines, prev, n = [], self._prev, self._n
        for entry in entries:
            line: dict[str, Any] = {"n": n, "prev": prev, **entry}
            prev, n = hashlib.sha256(canonical_json(line)).hexdigest(), n + 1
            lines.append(canonical_json(line | {"hash": prev}) + b"\n")
        raw = b"".join(lines)
        end = os.fstat(self._fd).st_size
        try:
            _write(self._fd, raw)
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, end)
            raise SpiritsafeError(
                f"{self.path}: cannot be written ({error.strerror}); what was answered before is saved: "
                "fix it and run again"
            ) from None
        self._prev, self._n = prev, n

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Transcript:
    """The answers of one suspect to one plan. See `Chain` for what `append` promises."""

    def __init__(self, chain: Chain, records: list[Record]) -> None:
        self._chain = chain
        self._records = records

    @classmethod
    def open(cls, path: Path, first_prev: str) -> Transcript:
        """Open for appending; verifies the chain and cuts a torn last line.

        Raises:
            BadInput: the file is damaged, or belongs to another plan.
        """
        chain, entries = Chain.open(path, first_prev)
        try:
            return cls(chain, [_record(entry, path) for entry in entries])
        except BadInput:
            chain.close()
            raise

    def append(self, *records: Record) -> None:
        """Add records, durably, in one write. Raises as `Chain.append`."""
        self._chain.append(_entry(record) for record in records)
        self._records += records

    def records(self) -> tuple[Record, ...]:
        """All lines, failures included, in the order written."""
        return tuple(self._records)

    def close(self) -> None:
        self._chain.close()

    def __enter__(self) -> Transcript:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_transcript(path: Path, first_prev: str) -> list[Record]:
    """A finished transcript, trusting nothing in it.

    Raises:
        BadInput: a line is torn, is not canonical JSON, is no record, or does not follow from the one before it.
    """
    return [_record(entry, path) for entry in read_chain(path, first_prev)]


def read_chain(path: Path, first_prev: str) -> list[dict[str, Any]]:
    """Entries of a finished chain, without the links, trusting nothing in it.

    Raises:
        BadInput: as `read_transcript`.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(max(0, size - 1))
            torn = size > 0 and file.read(1) != b"\n"
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    if torn:
        raise BadInput(f"{path}: its last line is torn; give the whole file")
    return [entry for _, entry in _entries(path, first_prev, size)]


def _entries(path: Path, first_prev: str, size: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(hash, entry) of each line of the first `size` bytes."""
    prev, n, at = first_prev, 0, 0
    with open(path, "rb") as file:
        while at < size:
            raw = file.readline(_LONGEST_LINE)
            at += len(raw)
            where = f"{path}: line {n + 1}"
            if not raw.endswith(b"\n"):
                raise BadInput(f"{where} is longer than {_LONGEST_LINE >> 20} MiB; this is no transcript")
            line = _line(raw[:-1], where)
            said = line.pop("hash", None)
            if hashlib.sha256(canonical_json(line)).hexdigest() != said:
                raise BadInput(f"{where} does not have the hash it says; the file was changed")
            if line.pop("n", None) != n or line.pop("prev", None) != prev:
                whose = "it belongs to another plan" if n == 0 else "lines are missing, added or out of order"
                raise BadInput(f"{where} does not follow from the line before it; {whose}")
            prev, n = said, n + 1
            yield prev, line


def _line(raw: bytes, where: str) -> dict[str, Any]:
    try:
        line = json.loads(raw)
        # Written in one way only, so no key twice, no NaN, nothing that two readers could read differently.
        same = canonical_json(line) == raw
    except (ValueError, RecursionError):
        line, same = None, False
    if not same or not isinstance(line, dict):
        raise BadInput(f"{where} is not canonical JSON; the file was changed")
    return line


def _record(entry: Mapping[str, Any], path: Path) -> Record:
    got, error = entry.get("got"), entry.get("error")
    ts, attempt = entry.get("ts"), entry.get("attempt")
    fits = (
        entry.keys() == _FIELDS
        and isinstance(entry["test"], str)
        and isinstance(entry["item"], str)
        and isinstance(ts, int | float) and not isinstance(ts, bool) and math.isfinite(ts)
        and isinstance(attempt, int) and not isinstance(attempt, bool) and attempt >= 1
        and isinstance(entry["asked"], dict)
        and ((isinstance(got, dict) and error is None) or (got is None and isinstance(error, str)))
    )  # fmt: skip
    if not fits:
        raise BadInput(f"{path}: item {str(entry.get('item'))[:60]!r} is no record of a question and its answer")
    return Record(**entry)


def _entry(record: Record) -> dict[str, Any]:
    return {
        "test": record.test,
        "item": record.item,
        "ts": record.ts,
        "attempt": record.attempt,
        "asked": dict(record.asked),
        "got": None if record.got is None else dict(record.got),
        "error": record.error,
    }


def _cut_torn(fd: int) -> int:
    """Cut what follows the last newline; returns the size then."""
    end = os.fstat(fd).st_size
    at = end
    while at > 0:
        start = max(0, at - (1 << 16))
        newline = os.pread(fd, at - start, start).rfind(b"\n")
        if newline >= 0:
            at = start + newline + 1
            break
        at = start
    if at < end:
        os.ftruncate(fd, at)
        os.fsync(fd)
    return at


def _write(fd: int, raw: bytes) -> None:
    view = memoryview(raw)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(folder: Path) -> None:
    """So that a file just made is still there after a power failure."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
