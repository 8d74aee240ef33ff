"""What an exported ledger commits to, and files of opened evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from spiritsafe.errors import BadInput
from spiritsafe.ledger import MOST_VARIANTS
from spiritsafe.ledger._check import ChainCheck
from spiritsafe.ledger._verify_file import check_file
from spiritsafe.progress import Silent

__all__ = ["CanaryRow", "Committed", "Window", "opened_lines", "read_committed"]


@dataclass(frozen=True, slots=True)
class TwinRow:
    """A reply that had a twin.  ts: Unix seconds.  commit: hex."""

    seq: int
    ts: float
    request_id: str
    account: str
    model: str
    commit: str


@dataclass(frozen=True, slots=True)
class CanaryRow:
    """A `canary_committed` event. size: how many variants there are."""

    seq: int
    ts: float
    canary: str
    commit: str
    size: int


@dataclass(frozen=True, slots=True)
class Committed:
    """All commitments of a ledger, in its order.  head: its last row, (seq, hash)."""

    head: tuple[int, str]
    twins: tuple[TwinRow, ...]
    canaries: tuple[CanaryRow, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """since ≤ ts < until; None is open."""

    since: float | None
    until: float | None

    @classmethod
    def of(cls, since: str | None, until: str | None) -> Window:
        """As a plan writes them: a day, an ISO time (UTC unless it says otherwise) or Unix seconds.

        Raises:
            BadInput: one is no time.
        """
        return cls(_moment("since", since), _moment("until", until))

    def holds(self, ts: float) -> bool:
        return (self.since is None or ts >= self.since) and (self.until is None or ts < self.until)


def read_committed(path: Path) -> Committed:
    """Follow the whole chain of a ledger that `ledger export --all` wrote as JSONL, and gather its commitments.

    Raises:
        BadInput: it cannot be read, is not whole, or a row is not what was hashed.
    """
    if path.suffix != ".jsonl":
        raise BadInput(f"{path}: give the ledger as `ledger export --all --out ledger.jsonl` writes it")
    check = ChainCheck((), (), partial=False)
    check_file(path, check, Silent())
    found = check.finish()
    if not found.ok:
        raise BadInput(
            f"{path}: not a whole ledger: {found.problems[0]}"
            + (f" (and {found.problem_count - 1} more)" if found.problem_count > 1 else "")
            + "; export it with --all"
        )
    twins, canaries = [], []
    for number, row in opened_lines(path):
        if row.get("kind") == "reply" and row["twin_commit"] is not None:
            names = (row["request_id"], row["account"], row["model"], row["twin_commit"])
            twins.append(TwinRow(row["seq"], row["ts"], *map(str, names)))
        elif row.get("kind") == "event" and row["name"] == "canary_committed":
            data = row["data"]
            try:
                size = data["variants"]
                if type(size) is not int or not 2 <= size <= MOST_VARIANTS:
                    raise TypeError
                canaries.append(CanaryRow(row["seq"], row["ts"], str(data["canary"]), str(data["commit"]), size))
            except (KeyError, TypeError):
                raise BadInput(f"{path}, line {number}: an event canary_committed that commits to nothing") from None
    return Committed(found.head, tuple(twins), tuple(canaries))


def opened_lines(path: Path, *, array: bool = False) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, object) of a JSONL file; of one JSON array too where `array` says so (number: the place in it).

    Raises:
        BadInput: it cannot be read, or something in it is no JSON object.
    """
    try:
        with path.open("rb") as file:
            if array and file.peek(1)[:1] == b"[":
                yield from _objects(path, enumerate(_parsed(path, 1, file.read(), list), 1))
                return
            for number, text in enumerate(file, 1):
                if not text.isspace():
                    yield number, _parsed(path, number, text, dict)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give the file that was exported") from None


def _objects(path: Path, values: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, value in values:
        if not isinstance(value, dict):
            raise BadInput(f"{path}, entry {number}: not a JSON object")
        yield number, value


def _parsed(path: Path, number: int, text: bytes, kind: type[Any]) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{path}, line {number}: not JSON ({error.msg}); export it again") from None
    if not isinstance(value, kind):
        raise BadInput(f"{path}, line {number}: not a JSON {'object' if kind is dict else 'array'}; export it again")
    return value


def _moment(name: str, given: str | None) -> float | None:
    if given is None:
        return None
    try:
        seconds = float(given)
        if not abs(seconds) < 1e12:
            raise BadInput(f"{name} {given}: not a time")
        return seconds
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(given)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise BadInput(f"{name} {given}: not a time; write a day, an ISO time or Unix seconds") from None
