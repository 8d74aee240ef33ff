"""The crash journal: what a process has in flight, written with one `write` a step, so that `kill -9` loses nothing.

A file per process. Each line is a CRC-32 in hex, a blank and a JSON array; a line that does not fit its CRC was torn
and counts as not written. A process holds an exclusive lock (flock) on its file for as long as it lives. What the
kernel has taken survives the process, not a power failure: there is no fsync on the path of a request.

    ["opened", id, facts]      before a request goes upstream
    ["released", id, tokens]   before that many output tokens have left, at most
    ["closed", id, fields]     the whole ledger row, before the reply is complete
    ["dropped", id]            there will be no row: it never went upstream
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from spiritsafe.errors import BadInput
from spiritsafe.ledger._rows import LedgerRow
from spiritsafe.state import Unavailable

__all__ = ["FORMAT", "Journal", "line", "lines_of"]

FORMAT = "spiritsafe-journal/1"
_LARGE = 8 << 20


class Journal:
    """One process's journal. Not for several threads at once.

    `opened`, `may_release` and `closed` raise `Unavailable` if the disk is full or gone. The step is then not recorded:
    after a crash the request counts as the steps before it say, so nothing dearer may be let out.
    """

    def __init__(self, folder: Path, worker: str, large: int = _LARGE) -> None:
        self._folder, self._worker, self._large = folder, worker, large
        self._live: dict[str, list[bytes]] = {}  # lines by request, from opened until durable
        self._released: dict[str, int] = {}
        self._healthy, self._torn = True, False
        self._path, self._fd, self._size = self._begin([])
        self._limit = large

    @classmethod
    def open(cls, folder: Path, worker: str, *, large: int = _LARGE) -> Journal:
        """Begin a new file in `folder`, which is made if need be. `recover` finds it if this process dies.

        large: bytes after which the file is written anew with what is still alive.

        Raises:
            BadInput: the folder cannot be used.
            Unavailable: its disk is full.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"journal folder {folder}: {error.strerror}; set state.journal to a local folder") from None
        return cls(folder, worker, large)

    def opened(self, request_id: str, facts: dict[str, Any]) -> None:
        """A request is about to go upstream. facts: JSON values, enough to charge for it if this process dies."""
        entry = line(["opened", request_id, facts])
        self._append(entry)
        self._live[request_id] = [entry]

    def may_release(self, request_id: str, tokens_out: int) -> None:
        """Up to `tokens_out` output tokens, counted from the reply's start, are about to leave. Lower or equal bounds
        than before cost nothing."""
        if tokens_out > self._released.get(request_id, -1):
            self._append(line(["released", request_id, tokens_out]))
            self._released[request_id] = tokens_out

    def closed(self, row: LedgerRow) -> None:
        """The row as it will be in the ledger. To be called before the rest of the reply leaves."""
        entry = line(["closed", row.request_id, [*row]])
        self._append(entry)
        self._live[row.request_id] = [entry]
        self._released.pop(row.request_id, None)

    def forget(self, request_ids: Iterable[str]) -> None:
        """These rows are durable; or, of requests that were only opened, nothing came of them and nothing is owed.
        Shortens the file when it pays."""
        undone = []
        for request_id in request_ids:
            entries = self._live.pop(request_id, None)
            self._released.pop(request_id, None)
            if entries is not None and entries[0].find(b'["opened"', 0, 20) >= 0:
                undone.append(request_id)
        if not self._live and self._empty():
            return
        with contextlib.suppress(Unavailable):  # at worst it is charged after a crash
            for request_id in undone:
                self._append(line(["dropped", request_id]))
        if self._size > self._limit:
            self._rewrite()

    @property
    def healthy(self) -> bool:
        """False from a failed write until one succeeds."""
        return self._healthy

    @property
    def path(self) -> Path:
        return self._path

    def close(self) -> None:
        """Stop. The file goes if nothing in it is needed any more; otherwise `recover` will find it."""
        if self._fd < 0:
            return
        if not self._live:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1

    def _append(self, entry: bytes) -> None:
        if self._torn:
            entry = b"\n" + entry
        try:
            written = os.write(self._fd, entry)
        except OSError as error:
            self._healthy = False
            raise self._unusable(error) from None
        if written != len(entry):
            self._healthy = False
            self._take_back(written)
            raise self._unusable(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._size += written
        self._healthy, self._torn = True, False

    def _take_back(self, written: int) -> None:
        """Remove a half-written line; where even that fails, the next one begins with a newline."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._size += written
            self._torn = True

    def _empty(self) -> bool:
        if self._size > len(_HEADER):
            try:
                os.ftruncate(self._fd, len(_HEADER))
            except OSError:
                return False
            self._size, self._torn = len(_HEADER), False
        return True

    def _rewrite(self) -> None:
        """Go on in a new file that holds what is alive. The old one goes once the new one is complete."""
        lines = [entry for entries in self._live.values() for entry in entries]
        lines += [line(["released", request_id, tokens]) for request_id, tokens in self._released.items()]
        old, fd = self._path, self._fd
        try:
            self._path, self._fd, self._size = self._begin(lines)
        except Unavailable:
            self._limit = self._size + self._large  # the old file still serves
            return
        self._torn, self._limit = False, max(self._large, 4 * self._size)
        with contextlib.suppress(OSError):
            old.unlink()
        os.close(fd)

    def _begin(self, lines: list[bytes]) -> tuple[Path, int, int]:
        """A new, locked file with these lines. It has its name only once it is whole."""
        name = f"{self._worker}-{os.getpid()}-{secrets.token_hex(4)}.journal"
        path, hidden = self._folder / name, self._folder / f".{name}"
        content = _HEADER + b"".join(lines)
        try:
            fd = os.open(hidden, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.write(fd, content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.rename(hidden, path)
            except OSError:
                os.close(fd)
                hidden.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._unusable(error) from None
        return path, fd, len(content)

    def _unusable(self, error: OSError) -> Unavailable:
        return Unavailable(
            f"journal folder {self._folder}: {error.strerror}; make room, or set state.journal to another disk"
        )


def line(value: Any) -> bytes:
    """One line of a journal."""
    text = orjson.dumps(value)
    return b"%08x %b\n" % (zlib.crc32(text), text)


def lines_of(content: bytes) -> Iterator[list[Any] | None]:
    """The arrays of a journal's lines; None for one that is damaged. What follows the last newline was torn and is
    left out."""
    *whole, _torn = content.split(b"\n")
    for text in whole:
        yield _parsed(text)


def _parsed(text: bytes) -> list[Any] | None:
    if text[:9] != b"%08x " % zlib.crc32(text[9:]):
        return None
    try:
        value = orjson.loads(text[9:])
    except ValueError:
        return None
    return value if isinstance(value, list) and value else None


_HEADER = line([FORMAT, LedgerRow._fields])
