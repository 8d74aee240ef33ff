"""Put items to one suspect, as many at once as it takes, and write down every answer before it counts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from spiritsafe.audit._transcript import Transcript
from spiritsafe.audit._types import NOT_ASKED, Item, Record, Suspect, Test
from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.ledger import canonical_json
from spiritsafe.spend import OverBudget
from spiritsafe.teachers import TeacherError

__all__ = ["Asker"]

_GRACE_S, _SHORT_GRACE_S = 10.0, 3.0  # what is under way gets to finish after Ctrl-C, and after an error
# An API's failures in a row, after all retries, that end the run: it is down, or will not have these questions.
_DOWN, _REFUSED_AT_FIRST, _REFUSED_LATER = 3, 5, 50


class Asker:
    """Asks one suspect into one transcript. An answered item is never asked again, a failed one once an attempt.

    shown: called after every line with (test, items of it that have a line, items of it).
    between: awaited now and then, while others are under way.
    over: the cap that stopped it, if one did.
    """

    def __init__(
        self,
        suspect: Suspect,
        transcript: Transcript,
        attempt: int,
        shown: Callable[[Test, int, int], None],
        between: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._suspect, self._transcript, self._attempt = suspect, transcript, attempt
        self._shown, self.between = shown, between
        self._last = {(record.test, record.item): record for record in transcript.records()}
        self._lines = Counter(test for test, _ in self._last)
        self._fatal: SpiritsafeError | None = None
        self._in_a_row = 0
        self._ever = any(record.got is not None for record in self._last.values())
        self.asked = 0
        self.over: OverBudget | None = None

    def todo(self, test: Test, items: Iterable[Item]) -> list[Item]:
        """Those that have no answer, and did not fail in this attempt.

        Raises:
            BadInput: an item was asked differently in an earlier attempt.
        """
        left = []
        for item in items:
            last = self._last.get((test.name, item.id))
            if last is not None and canonical_json(last.asked) != canonical_json(dict(item.asked)):
                raise BadInput(
                    f"{test.name}: {item.id} was asked differently in an earlier attempt; use the version of "
                    "spiritsafe that began this run, or move the run's folder away and begin again"
                )
            if last is None or (last.got is None and last.attempt != self._attempt):
                left.append(item)
        return left

    def records(self, test: Test, items: Iterable[Item]) -> list[Record]:
        """The last line of each item that has one."""
        return [self._last[key] for item in items if (key := (test.name, item.id)) in self._last]

    @property
    def answered(self) -> bool:
        """True if anything was ever answered."""
        return self._ever

    async def run(self, test: Test, items: Sequence[Item], of: int | None = None) -> None:
        """Ask what is left of `items`, in their order; returns when each has a line, or a cap stopped it.

        of: how many items the test has in all, for those who watch.

        Raises:
            SpiritsafeError: the suspect refuses the key, is down or refuses all; run again to go on.
            asyncio.CancelledError: cancelled; what came in within a short grace is written down.
        """
        left = self.todo(test, items)
        total, size = len(items) if of is None else of, max(1, self._suspect.batch)
        waiting = deque(left[at : at + size] for at in range(0, len(left), size))
        tasks: set[asyncio.Task[None]] = set()
        try:
            while tasks or (waiting and not self._stopping):
                while waiting and not self._stopping and len(tasks) < self._suspect.concurrency:
                    tasks.add(asyncio.ensure_future(self._ask(test, waiting.popleft(), total)))
                if self.between is not None and not self._stopping:
                    await self.between()
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._ended(task)
                if self._fatal is not None:
                    await _drain(tasks, _SHORT_GRACE_S)
                    tasks = set()
        except BaseException:
            await _drain(tasks, _GRACE_S)
            raise
        if self._fatal is not None:
            raise self._fatal

    @property
    def _stopping(self) -> bool:
        return self._fatal is not None or self.over is not None

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, OverBudget):
            self.over = error
        elif isinstance(error, SpiritsafeError):
            self._fatal = self._fatal or error
        elif error is not None:
            raise error  # a fault of a test: it has to be seen

    async def _ask(self, test: Test, items: Sequence[Item], total: int) -> None:
        try:
            brought = await test.ask(self._suspect, items)
            if len(brought) != len(items):
                raise RuntimeError(f"{test.name} brought {len(brought)} answers to {len(items)} items")
        except TeacherError as error:
            if len(items) > 1 and error.kind != "auth":  # one of them spoils it for all
                for item in items:
                    await self._ask(test, [item], total)
                return
            self._failed(test, items, error, total)
            return
        self._in_a_row, self._ever = 0, True
        self._write(test, [self._record(test, item, got) for item, got in zip(items, brought, strict=True)], total)

    def _record(self, test: Test, item: Item, got: object) -> Record:
        try:
            canonical_json(got)
        except (ValueError, TypeError) as error:
            return Record(test.name, item.id, time.time(), self._attempt, item.asked, None, f"no JSON: {error}")
        assert isinstance(got, dict)
        return Record(test.name, item.id, time.time(), self._attempt, item.asked, got)

    def _failed(self, test: Test, items: Sequence[Item], error: TeacherError, total: int) -> None:
        now, said = time.time(), f"{error.kind}: {error}"
        self._write(test, [Record(test.name, i.id, now, self._attempt, i.asked, None, said) for i in items], total)
        self._in_a_row += 1
        refused = error.kind in ("bad_request", "malformed")
        most = (_REFUSED_LATER if self._ever else _REFUSED_AT_FIRST) if refused else _DOWN
        if error.kind == "auth" or (self._suspect.access != "weights" and self._in_a_row >= most):
            times = "" if error.kind == "auth" else f" ({self._in_a_row} questions in a row)"
            self._fatal = self._fatal or SpiritsafeError(
                f"{error}{times}; what was answered is saved, run again to go on"
            )

    def skip(self, test: Test, items: Iterable[Item], why: str) -> int:
        """Write down that items without a line were not asked, and why; returns how many."""
        left = [item for item in items if (test.name, item.id) not in self._last]
        now, said = time.time(), NOT_ASKED + why
        self._write(test, [Record(test.name, i.id, now, self._attempt, i.asked, None, said) for i in left], 0)
        return len(left)

    def _write(self, test: Test, records: Sequence[Record], total: int) -> None:
        self._transcript.append(*records)
        for record in records:
            self._lines[record.test] += (record.test, record.item) not in self._last
            self._last[record.test, record.item] = record
            self.asked += record.got is not None
        if total:
            self._shown(test, self._lines[test.name], total)


async def _drain(tasks: set[asyncio.Task[None]], grace: float) -> None:
    """Let what is under way finish, for a while; break off the rest."""
    if tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(tasks, timeout=grace)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
