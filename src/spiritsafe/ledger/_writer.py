"""The writer: entries gather for a moment, then go to the database together."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from spiritsafe.ledger._checkpoints import Checkpoint, sign_checkpoint, write_checkpoint
from spiritsafe.ledger._commit import commit
from spiritsafe.ledger._retention import forget_personal
from spiritsafe.ledger._rows import Event, LedgerRow
from spiritsafe.ledger._seal import Sealed, seal
from spiritsafe.state import Database, Unavailable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["Ledger"]

_MOST = 256  # entries a commit: about a millisecond of the event loop
_BACKOFF_S = (0.05, 5.0)
_RETENTION_EVERY_S = 3600.0
_log = logging.getLogger("spiritsafe.ledger")


class Ledger:
    """Appends to the hash chain. One per process and event loop; many processes may write to one database.

    on_commit: called with the ids that have just become durable.  last_commit_s: how long the last one took.
    """

    on_commit: Callable[[list[str]], None] | None = None
    last_commit_s = 0.0

    def __init__(
        self,
        db: Database,
        signer: Ed25519PrivateKey | None,
        commit_ms: float,
        checkpoint_every_s: float,
        retention_days: float,
        clock: Callable[[], float],
    ) -> None:
        self._db, self._signer, self._clock = db, signer, clock
        self._commit_s, self._checkpoint_every_s = commit_ms / 1000, checkpoint_every_s
        self._retention_s = retention_days * 86400
        self._written = 0
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        self._pending: deque[tuple[Sealed, asyncio.Future[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._some, self._now = asyncio.Event(), asyncio.Event()
        self._healthy, self._closing = True, False
        self._unsigned, self._signed_at = False, time.monotonic()
        self._tasks = [self._loop.create_task(self._write()), self._loop.create_task(self._retain())]

    @classmethod
    async def open(
        cls,
        db: Database,
        *,
        signer: Ed25519PrivateKey | None = None,
        commit_ms: float = 50,
        checkpoint_every_s: float = 300,
        retention_days: float = 400,
        clock: Callable[[], float] = time.time,
    ) -> Ledger:
        """Start writing to an open database, which stays the caller's to close.

        signer: signs a checkpoint every `checkpoint_every_s` while rows come, and at `aclose`.
        commit_ms: how long entries gather.  retention_days: age at which personal fields are deleted.
        """
        return cls(db, signer, commit_ms, checkpoint_every_s, retention_days, clock)

    def append(self, entry: LedgerRow | Event) -> asyncio.Future[int]:
        """Take an entry to be written; never blocks. The future gives its number in the chain once it is on disk. A
        row whose request id the ledger has already is not written again; the future then gives the first one's number.

        Raises:
            ValueError, TypeError: as `seal`; nothing was taken.
            RuntimeError: the ledger is closed.
        """
        if self._closing:
            raise RuntimeError("the ledger is closed")
        future: asyncio.Future[int] = self._loop.create_future()
        self._pending.append((seal(entry), future))
        waiting = len(self._pending)
        if waiting == 1:
            self._some.set()
        elif waiting == _MOST:
            self._now.set()
        return future

    @property
    def backlog(self) -> int:
        """Entries not yet on disk."""
        return len(self._pending)

    @property
    def healthy(self) -> bool:
        """False from a failed commit until one succeeds. Nothing is dropped meanwhile."""
        return self._healthy

    async def flush(self) -> None:
        """Wait until everything appended so far is on disk, however long the database is away."""
        if self._pending:
            self._now.set()
            written: asyncio.Future[None] = self._loop.create_future()
            self._flushes.append((self._written + len(self._pending), written))
            await written

    async def aclose(self, timeout_s: float = 10.0) -> None:
        """Write what is pending and a last checkpoint, then stop.

        Raises:
            Unavailable: the database did not come back within `timeout_s`; the entries left are in the journals only.
        """
        if self._closing:
            return
        self._closing = True
        self._some.set()
        self._now.set()
        writing, retaining = self._tasks
        retaining.cancel()
        await asyncio.wait([writing], timeout=timeout_s)
        writing.cancel()
        await asyncio.wait(self._tasks)
        for _, future in self._pending:
            future.cancel()
        for _, written in self._flushes:
            written.cancel()
        if self._pending:
            raise Unavailable(
                f"ledger: {len(self._pending)} entries could not be written to {self._db.url.split('@')[-1]}; "
                "start again once the database is back, the journals still hold them"
            )
        if self._signer is not None and self._unsigned:
            try:
                await write_checkpoint(self._db, self._signer, self._clock())
            except Unavailable as error:
                _log.warning("ledger: all rows are written, the last checkpoint is not: %s", error)

    async def _write(self) -> None:
        wait = 0.0
        while await self._gather():
            batch = list(itertools.islice(self._pending, _MOST))
            try:
                began = time.monotonic()
                due = self._signer is not None and began - self._signed_at >= self._checkpoint_every_s
                done = await commit(self._db, [sealed for sealed, _ in batch], self._sign if due else None)
            except Exception as error:
                if self._healthy:
                    _log.warning("ledger: commit failed, %d entries wait: %s", self.backlog, error)
                self._healthy = False
                wait = min(max(wait * 2, _BACKOFF_S[0]), _BACKOFF_S[1])
                await asyncio.sleep(wait)
                continue
            if not self._healthy:
                _log.warning("ledger: writing again")
            self._healthy, wait = True, 0.0
            self.last_commit_s = time.monotonic() - began
            if due:
                self._unsigned, self._signed_at = False, time.monotonic()
            elif done.written:
                self._unsigned = True
            self._tell(done.seqs)

    def _tell(self, seqs: list[int]) -> None:
        """The first of the pending entries are on disk, under these numbers."""
        entries = [self._pending.popleft() for _ in seqs]
        self._written += len(entries)
        for seq, (_, future) in zip(seqs, entries, strict=True):
            if not future.done():  # whoever waited may have given up
                future.set_result(seq)
        for upto, written in self._flushes:
            if upto <= self._written and not written.done():
                written.set_result(None)
        self._flushes = [flush for flush in self._flushes if not flush[1].done()]
        if self.on_commit is not None and entries:
            try:
                self.on_commit([sealed.id for sealed, _ in entries])
            except Exception:
                _log.exception("ledger: whoever is told of commits failed")

    async def _gather(self) -> bool:
        """Wait until there is work: entries, or a checkpoint that is due. False once closed and empty."""
        while not self._pending:
            if self._closing:
                return False
            self._some.clear()
            left = None
            if self._signer is not None and self._unsigned:
                left = self._signed_at + self._checkpoint_every_s - time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._some.wait(), left)
                continue
            return True
        if len(self._pending) < _MOST and not self._closing:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._now.wait(), self._commit_s)
        self._now.clear()
        return True

    def _sign(self, seq: int, chain_hash: str) -> Checkpoint:
        assert self._signer is not None
        return sign_checkpoint(self._signer, seq, chain_hash, self._clock())

    async def _retain(self) -> None:
        while True:
            try:
                await forget_personal(self._db, before=self._clock() - self._retention_s)
            except Unavailable as error:
                _log.warning("ledger: retention waits: %s", error)
            await asyncio.sleep(_RETENTION_EVERY_S)
