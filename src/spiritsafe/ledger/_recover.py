"""What processes that died had in flight."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spiritsafe.ledger._journal import FORMAT, lines_of
from spiritsafe.ledger._rows import LedgerRow

__all__ = ["Orphan", "recover"]

_log = logging.getLogger("spiritsafe.ledger")
_UNFINISHED_S = 60.0  # a journal being begun has its name long before that


@dataclass(slots=True)
class Orphan:
    """A request that was in flight when its process died.

    facts: as given to `Journal.opened`; empty if only that line was damaged.
    released_tokens: an upper bound of the output tokens that left before the reply was complete; None: none did.
    row: the finished row, if the reply was complete or about to be. It may be in the ledger already, which skips it.
    """

    request_id: str
    facts: dict[str, Any]
    released_tokens: int | None = None
    row: LedgerRow | None = None
    _files: list[_File] = field(default_factory=list, repr=False)

    def done(self) -> None:
        """It is accounted for: durably in the ledger. The file goes with its last orphan."""
        for file in self._files:
            file.done(self.request_id)

    def _join(self, other: Orphan, file: _File) -> None:
        """The same request in `file`: its process died while it went on to a second one."""
        self.facts, self.row = self.facts or other.facts, self.row or other.row
        if other.released_tokens is not None:
            self.released_tokens = max(self.released_tokens or 0, other.released_tokens)
        self._files.append(file)


def recover(folder: Path, say: Callable[[str], None] = _log.warning) -> list[Orphan]:
    """Take over the journals in `folder` whose processes are dead, and hold them until every orphan is `done`.

    Several processes may recover at once: each file goes to one of them. If that one dies before it is done, the next
    recovery finds the same orphans again. A torn last line is as if never written. A file damaged elsewhere gives what
    can be read of it and is kept under another name, which `say` is told.

    Raises:
        OSError: a file cannot be read.
    """
    orphans: dict[str, Orphan] = {}
    for path in sorted(folder.glob("[!.]*.journal")):
        file = _File.take(path, say)
        if file is None:
            continue
        mine = file.read()
        if mine is None:
            continue
        for request_id, orphan in mine.items():
            orphans.setdefault(request_id, orphan)._join(orphan, file)
        file.waiting = set(mine)
        file.drop_if_done()
    for path in folder.glob(".*.journal"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _UNFINISHED_S:
                path.unlink()
    return list(orphans.values())


@dataclass(slots=True)
class _File:
    """A dead process's journal, locked by this one."""

    path: Path
    fd: int
    say: Callable[[str], None]
    damaged: str = ""
    waiting: set[str] = field(default_factory=set)

    @classmethod
    def take(cls, path: Path, say: Callable[[str], None]) -> _File | None:
        """None if its process lives, or somebody else was faster."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        try:
            same = os.path.samestat(os.fstat(fd), os.stat(path))
        except FileNotFoundError:
            same = False
        if not same:  # somebody was done with it between the two calls
            os.close(fd)
            return None
        return cls(path, fd, say)

    def done(self, request_id: str) -> None:
        if request_id in self.waiting:
            self.waiting.discard(request_id)
            self.drop_if_done()

    def drop_if_done(self) -> None:
        if self.waiting:
            return
        if self.damaged:
            aside = self.path.with_suffix(".damaged")
            self.path.rename(aside)
            self.say(f"journal {self.path}: {self.damaged}; what could be read was used, the file is kept as {aside}")
        else:
            self.path.unlink(missing_ok=True)
        os.close(self.fd)

    def read(self) -> dict[str, Orphan] | None:
        """What the file leaves open, by request; None for a newer version's, which is left alone."""
        lines = list(lines_of(self.path.read_bytes()))
        fields = LedgerRow._fields
        header = lines[0] if lines else None
        if header is not None and header[0] == FORMAT:
            fields = tuple(header[1])
        elif header is not None and str(header[0]).startswith("spiritsafe-journal/"):
            self.say(f"journal {self.path}: written by a newer version of spiritsafe; start that one to recover it")
            os.close(self.fd)
            return None
        else:
            self.damaged, header = "it does not begin like a journal", None
        orphans: dict[str, Orphan] = {}
        for number, step in enumerate(lines, 1):
            if step is None:
                self.damaged = self.damaged or f"line {number} is damaged"
            elif step is not header:
                _follow(orphans, step, fields)
        return orphans


def _follow(orphans: dict[str, Orphan], step: list[Any], fields: tuple[str, ...]) -> None:
    verb, request_id, *rest = step
    orphan = orphans.setdefault(request_id, Orphan(request_id, {}))
    if verb == "opened":
        orphan.facts = rest[0]
    elif verb == "released":
        orphan.released_tokens = max(rest[0], orphan.released_tokens or 0)
    elif verb == "closed":
        values = dict(zip(fields, rest[0], strict=False))
        orphan.row = LedgerRow(**{name: values[name] for name in LedgerRow._fields if name in values})
    elif verb == "dropped":
        del orphans[request_id]
