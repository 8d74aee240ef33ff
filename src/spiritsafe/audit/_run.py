"""`audit run`: put a frozen plan to the suspect and to the controls, and write down everything.

Tests in the order of the plan, items in the order of the test. The answers of one test decide nothing about what the
next one asks; only `stop.rule: e-value` ends the primary test early, at the end of a batch of `stop.batch` items.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spiritsafe.audit._asking import Asker
from spiritsafe.audit._attempts import Attempts
from spiritsafe.audit._fit import check_primary, misfit
from spiritsafe.audit._probes import Probes
from spiritsafe.audit._run_folder import RunFolder
from spiritsafe.audit._subject import identity, write_subject
from spiritsafe.audit._suspect import open_control, open_suspect
from spiritsafe.audit._suspect_spend import Journal
from spiritsafe.audit._transcript import Transcript
from spiritsafe.audit.tests import open_test
from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput, Interrupted, Refused, SpiritsafeError
from spiritsafe.progress import Progress, Silent
from spiritsafe.runs import Run
from spiritsafe.spend import Budget, Caps, OverBudget, Price

if TYPE_CHECKING:
    from spiritsafe.audit._freeze import Frozen
    from spiritsafe.audit._types import Item, Suspect, Test

__all__ = ["RunFolder", "run_audit"]

_NOT_THERE = ("auth", "malformed", "network", "timeout")  # with these at the start no question is worth a try
_CAPS = {"usd": "budget.usd", "tokens": "budget.tokens", "requests": "budget.requests"}


async def run_audit(
    frozen: Frozen, source: str, *, progress: Progress | None = None, suspect: Suspect | None = None
) -> RunFolder:
    """Ask what is not answered yet; returns when every item has a line.

    source: an address, or weights: see `open_suspect`.  suspect: one that is open already; `source` then only names it.
    A budget is part of the plan: where it runs out, what is left is recorded as not asked.

    Raises:
        Refused: the budget does not suffice for anything, or the run was begun with another suspect.
        BadInput: the suspect does not give what a test needs or reads other token ids; the folder is damaged or in use.
        Interrupted: Ctrl-C or SIGTERM; what was answered is saved, and the same command goes on.
        SpiritsafeError: the suspect cannot be reached, refuses the key or everything; run again to go on.
    """
    folder = RunFolder.of(frozen.file)
    with _locked(folder), contextlib.ExitStack() as files:
        journal = files.enter_context(contextlib.closing(Journal(folder.requests)))
        probes = files.enter_context(contextlib.closing(Probes(folder.probes, frozen.hash)))
        attempts = files.enter_context(contextlib.closing(Attempts(folder.attempts, frozen.hash)))
        transcript = files.enter_context(Transcript.open(folder.transcript, frozen.hash))
        run = _Run(frozen, folder, source, journal, probes, attempts, transcript, progress or Silent())
        with _sigterm_as_interrupt():
            try:
                await run.go(suspect)
            except asyncio.CancelledError:
                raise Interrupted(
                    f"stopped; {run.answered} answers of this attempt are saved, run the same command to go on"
                ) from None
    return folder


@dataclass(slots=True)
class _Run:
    frozen: Frozen
    folder: RunFolder
    source: str
    journal: Journal
    probes: Probes
    attempts: Attempts
    transcript: Transcript
    progress: Progress
    answered: int = 0

    async def go(self, given: Suspect | None) -> None:
        plan, frozen = self.frozen.plan, self.frozen
        tests = [open_test(config, frozen.evidence(config.name or config.kind)) for config in plan.tests]
        items = [list(test.items()) for test in tests]
        budget = self._budget()
        async with self._suspect(given, budget) as suspect:
            for config, test in zip(plan.tests, tests, strict=True):
                if why := misfit(config, test, suspect, frozen):
                    raise BadInput(f"{test.name}: the suspect {why}")
            check_primary(plan, tests[0])
            self.attempts.begin(identity(self.source, plan.subject, suspect.info))
            over = await self._ask_suspect(suspect, tests, items, budget)
            known = {}
            for name in plan.controls:
                known[name] = await self._ask_control(name, tests, items, budget)
            notes = (*frozen.notes, *([_ran_out(over)] if over else ()))
            changes = write_subject(
                self.folder.subject, self.source, plan.subject, suspect,
                controls=known, journal=self.journal, probes=self.probes, notes=notes,
            )  # fmt: skip
        for change in changes:
            self.progress.say(f"note: {change}")

    async def _ask_suspect(
        self, suspect: Suspect, tests: list[Test], items: list[list[Item]], budget: Budget
    ) -> OverBudget | None:
        asker = Asker(suspect, self.transcript, self.attempts.number, functools.partial(self._show, budget, ""))
        try:
            if self.frozen.plan.stop.rule == "e-value":
                items[0] = self._asked_enough(asker, tests[0], items[0])
            todo = sum(len(asker.todo(test, some)) for test, some in zip(tests, items, strict=True))
            probed = suspect.access != "weights" and (todo > 0 or not self.probes.ended)
            if probed:
                failure = await self.probes.ask(suspect, self.attempts.number, "start")
                if failure is not None and failure.kind in _NOT_THERE:
                    raise SpiritsafeError(f"{failure}; what was answered is saved, run again to go on")
                asker.between = functools.partial(self._halfway, asker, suspect, todo)
            for index, (test, some) in enumerate(zip(tests, items, strict=True)):
                if index == 0 and self.frozen.plan.stop.rule == "e-value":
                    items[0] = await self._until_enough(asker, test, some)
                else:
                    await asker.run(test, some)
            if probed and asker.over is None:
                await self.probes.ask(suspect, self.attempts.number, "end")
        except OverBudget as refusal:  # of a probe
            asker.over = asker.over or refusal
        finally:
            self.answered = asker.asked
        if asker.over is not None:
            if not asker.answered:
                raise Refused(f"{_ran_out(asker.over)} before anything was answered; freeze one with a larger budget")
            why = _ran_out(asker.over)
            left = sum(asker.skip(test, some, why) for test, some in zip(tests, items, strict=True))
            self.progress.say(f"note: {why}; {left} items are recorded as not asked")
        return asker.over

    async def _until_enough(self, asker: Asker, test: Test, items: list[Item]) -> list[Item]:
        """Ask batch by batch until the test's e-value is family/alpha; returns the items up to there."""
        for end in self._batches(items):
            await asker.run(test, items[end - self.frozen.plan.stop.batch : end], len(items))
            if asker.over is not None:
                return items
            if self._enough(asker, test, items[:end]):
                self.progress.say(f"{test.name}: e-value reached after {min(end, len(items))} of {len(items)} items")
                return items[:end]
        return items

    def _asked_enough(self, asker: Asker, test: Test, items: list[Item]) -> list[Item]:
        """The items up to where an earlier attempt stopped; all of them if none did."""
        for end in self._batches(items):
            if asker.todo(test, items[end - self.frozen.plan.stop.batch : end]):
                break
            if self._enough(asker, test, items[:end]):
                return items[:end]
        return items

    def _batches(self, items: list[Item]) -> range:
        size = self.frozen.plan.stop.batch
        return range(size, len(items) + size, size)

    def _enough(self, asker: Asker, test: Test, items: list[Item]) -> bool:
        evalue: Any = getattr(test, "evalue")  # noqa: B009 — the plan allows this rule for tests that have one only
        family = self.frozen.families[test.name]
        return bool(evalue(asker.records(test, items)) >= math.log10(family / self.frozen.plan.alpha))

    async def _ask_control(
        self, name: str, tests: list[Test], items: list[list[Item]], budget: Budget
    ) -> dict[str, Any]:
        """Put the items that the suspect was asked to a control; returns what is known of it."""
        config = self.frozen.control(name)
        wants = any(test.access == "logprobs" for test in tests)
        try:
            control = await asyncio.to_thread(
                open_control, name, config, logprobs=wants, budget=budget, journal=self.journal
            )
        except OverBudget as refusal:
            return {"model": config.model_id, "address": config.base_url, "skipped": [_ran_out(refusal)]}
        skipped = []
        try:
            with Transcript.open(self.folder.control(name), self.frozen.hash) as transcript:
                shown = functools.partial(self._show, budget, f"{name}: ")
                asker = Asker(control, transcript, self.attempts.number, shown)
                for index, (plan_of, test) in enumerate(zip(self.frozen.plan.tests, tests, strict=True)):
                    why = misfit(plan_of, test, control, self.frozen)
                    if why and index == 0:
                        raise BadInput(f"control {name}: {test.name} is the primary test, and the control {why}")
                    if why:
                        skipped.append(f"{test.name}: it {why}")
                        continue
                    await asker.run(test, items[index])
                    if asker.over is not None:
                        asker.skip(test, items[index], _ran_out(asker.over))
                        skipped.append(f"{test.name}: {_ran_out(asker.over)}")
        finally:
            await control.aclose()
        info = control.info
        return {
            "model": info.model,
            "revision": info.revision,
            "address": config.base_url,
            "tokenizer_hash": info.tokenizer_hash,
            "access": control.access,
            "answers": self.journal.said(f"control {name}"),
            "skipped": skipped,
        }

    @contextlib.asynccontextmanager
    async def _suspect(self, given: Suspect | None, budget: Budget) -> AsyncIterator[Suspect]:
        if given is not None:
            yield given
            return
        plan = self.frozen.plan
        price = None if plan.budget.price is None else parse_config(plan.budget.price, Price, where="budget.price")
        base = plan.subject.base and self.frozen.weights.get(plan.subject.base)
        subject = plan.subject.model_copy(update={"base": base})
        opened = await asyncio.to_thread(
            open_suspect, self.source, subject, budget=budget, price=price, journal=self.journal
        )
        try:
            yield opened
        finally:
            await opened.aclose()

    async def _halfway(self, asker: Asker, suspect: Suspect, todo: int) -> None:
        """Ask the probes once, when half of what there is to ask is answered."""
        if todo >= 4 and 2 * asker.asked >= todo:
            asker.between = None
            await self.probes.ask(suspect, self.attempts.number, "middle")

    def _budget(self) -> Budget:
        config = self.frozen.plan.budget
        caps = Caps(usd=config.usd, tokens=config.tokens, requests=config.requests)
        return Budget(caps, spent=self.journal.spent, names=_CAPS)  # type: ignore[arg-type]

    def _show(self, budget: Budget, who: str, test: Test, done: int, total: int) -> None:
        spent, cap = budget.spent, budget.caps.usd
        note = f"{spent.requests:,} requests, {spent.tokens:,} tokens" if spent.requests else ""
        if note and (spent.usd or cap is not None):  # no price, no dollars
            note += f", ${spent.usd:.4f}" + (f" of ${cap:g}" if cap is not None else "")
        self.progress.update(f"{who}{test.name}", done, total, note)


def _ran_out(over: OverBudget) -> str:
    """For the case: a frozen budget cannot be raised, as the refusal itself advises."""
    return f"the plan's budget ran out ({_CAPS[over.cap]})"


@contextlib.contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(Run.open(folder.path).lock())
        except BadInput:
            raise BadInput(f"{folder.path}: unusable, or another audit works there; wait for it") from None
        except OSError as error:
            raise SpiritsafeError(
                f"{folder.path}: cannot be written ({error.strerror}); fix it and run again"
            ) from None
        yield


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, which `asyncio.run` handles itself."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    alone = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not alone or task is None:
        yield
        return
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
