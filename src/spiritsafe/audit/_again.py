"""Plans frozen before: read, and kept under a number when another takes their place."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from spiritsafe.audit._run_folder import RunFolder
from spiritsafe.audit._unpack import read_document
from spiritsafe.errors import BadInput
from spiritsafe.runs import atomic_write

__all__ = ["Earlier", "earlier", "keep"]

_FILES = (".frozen.json", ".frozen.tsr", ".frozen.sig.json")


@dataclass(frozen=True, slots=True)
class Earlier:
    """The newest plan frozen before.

    superseded: hashes of those before it.  starts: of runs, under it and under all of those.
    """

    hash: str
    superseded: tuple[str, ...]
    starts: int


def earlier(plan_file: Path) -> Earlier | None:
    """The plan that is frozen, or was last; None if none ever was.

    Raises:
        BadInput: its file is damaged or cannot be read.
    """
    file = plan_file.with_suffix(".frozen.json")
    if not file.exists():
        numbers = _numbers(plan_file)
        if not numbers:
            return None
        file = _numbered(plan_file, ".frozen.json", max(numbers))
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); restore it") from None
    document = read_document(file, raw)
    starts = document["abandoned"] + _starts(RunFolder.of(plan_file).attempts)
    return Earlier(hashlib.sha256(raw).hexdigest(), tuple(document["superseded"]), starts)


def keep(plan_file: Path) -> None:
    """Copy the frozen plan to the next number, and move its run there. The plan itself stays until it is replaced."""
    current = [plan_file.with_suffix(suffix) for suffix in _FILES]
    if not current[0].exists():
        return
    number = max(_numbers(plan_file), default=0) + 1
    for suffix, file in zip(_FILES, current, strict=True):
        if file.exists():
            atomic_write(_numbered(plan_file, suffix, number), file.read_bytes())
    run = RunFolder.of(plan_file).path
    if run.exists():
        os.replace(run, run.with_name(f"{run.name}.{number}"))


def _numbered(plan_file: Path, suffix: str, number: int) -> Path:
    return plan_file.with_suffix(suffix.replace(".frozen", f".frozen.{number}"))


def _numbers(plan_file: Path) -> list[int]:
    numbers = []
    for file in plan_file.parent.glob(f"{plan_file.stem}.frozen.*.json"):
        with contextlib.suppress(ValueError):
            numbers.append(int(file.name.removeprefix(f"{plan_file.stem}.frozen.").removesuffix(".json")))
    return numbers


def _starts(attempts: Path) -> int:
    """Lines of attempts.jsonl, each one start."""
    try:
        return sum(1 for line in attempts.read_bytes().splitlines() if line.strip())
    except FileNotFoundError:
        return 0
