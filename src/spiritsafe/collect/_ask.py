"""Asking: what is left to ask, under which caps, on an event loop of its own."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spiritsafe.collect._collector import Collector
from spiritsafe.collect._config import CollectConfig
from spiritsafe.collect._jobs import Job, Questions
from spiritsafe.collect._limiter import Limiter
from spiritsafe.collect._store import Store, siblings
from spiritsafe.errors import BadInput
from spiritsafe.progress import Progress
from spiritsafe.records import Prompt, TeacherInfo
from spiritsafe.spend import Budget, Caps, OverBudget
from spiritsafe.teachers import Teacher, TeacherConfig, open_teacher

__all__ = ["Asked", "ask", "open_budget"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One session of asking. over: the cap that stopped it, if one did."""

    info: TeacherInfo
    questions: Questions
    reused: int
    seconds: float
    tokens_out: int
    concurrency: int
    noted: Mapping[str, int]
    over: OverBudget | None


def ask(
    store: Store,
    teacher_config: TeacherConfig,
    prompts: Sequence[Prompt],
    config: CollectConfig,
    progress: Progress,
    teacher: Teacher | None,
) -> Asked:
    """Bring the store's answers to `prompts` up to date, as far as the caps allow.

    Raises:
        BadInput, Interrupted, SpiritsafeError: as `collect`.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        opened = teacher or open_teacher(teacher_config)
        try:
            questions = Questions(config, opened.info)
            reused, todo = _plan(store, questions, prompts, config)
            if reused:
                progress.say(f"collect: {reused} answers copied from sibling runs at no cost")
            budget = open_budget(teacher_config, config, store)
            limiter = Limiter(_fixed(teacher_config, config), patience=teacher_config.timeout_s / 4)
            collector = Collector(
                store, opened, teacher_config.effective_price, budget, limiter, config, questions, progress
            )
            room = None if config.max_requests is None else config.max_requests - budget.spent.requests
            if room is not None and len(todo) > room:
                progress.say(f"collect: {len(todo)} requests to send, but collect.max_requests leaves room for {room}")
            started = time.monotonic()
            if todo:
                runner.run(_heeding_sigterm(collector.run(todo, len(prompts) - len(todo))))
            seconds = time.monotonic() - started if todo else 0.0
        finally:
            if teacher is None:
                runner.run(opened.aclose())
    if collector.fatal is not None:
        raise collector.fatal
    for flaw in ("without logprobs", "without usage: charged at the worst case"):
        if collector.noted[flaw]:
            progress.say(f"collect: {collector.noted[flaw]} answers came {flaw}")
    return Asked(
        opened.info, questions, reused, seconds, collector.tokens_out, limiter.highest, collector.noted, collector.over
    )


def open_budget(teacher: TeacherConfig, config: CollectConfig, store: Store | None = None) -> Budget:
    """The caps of `config`, with what the store says was spent under them already.

    Raises:
        BadInput: a cap on dollars, but nobody knows the price.
    """
    if config.budget_usd is not None and teacher.effective_price is None:
        raise BadInput(
            f"collect.budget_usd is {config.budget_usd:g}, but the price of {teacher.model_id} is unknown; write it in "
            "the recipe in USD per million tokens: teacher: {price: {input_per_mtok: 0.15, output_per_mtok: 0.60}}, "
            "with 0 for a free server"
        )
    return Budget(
        Caps(config.budget_usd, config.max_tokens_total, config.max_requests, config.max_seconds),
        spent=None if store is None else store.spent(),
        names={
            "usd": "collect.budget_usd",
            "tokens": "collect.max_tokens_total",
            "requests": "collect.max_requests",
            "seconds": "collect.max_seconds",
        },
    )


def _plan(
    store: Store, questions: Questions, prompts: Sequence[Prompt], config: CollectConfig
) -> tuple[int, list[Job]]:
    """Copy what sibling runs have, then return how much that was, and what is left to ask."""
    reused = 0
    while True:
        known = store.known()
        todo = [job for prompt in prompts if (job := questions.open(prompt, known)) is not None]
        store.add((job.hash, job.request) for job in todo)
        if not todo or not config.reuse:
            return reused, todo
        wanted = {job.hash for job in todo}
        for sibling in siblings(store.path):
            wanted -= set(store.copy_answers(sibling, wanted))
        if len(wanted) == len(todo):
            return reused, todo
        reused += len(todo) - len(wanted)


def _fixed(teacher: TeacherConfig, config: CollectConfig) -> int | None:
    """Concurrency that does not adapt: as configured, or for local weights one batch under way and one waiting."""
    if config.concurrency != "auto":
        return config.concurrency
    return 2 * teacher.max_batch if teacher.path is not None else None


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _heeding_sigterm(work: Coroutine[Any, Any, None]) -> None:
    """Treat SIGTERM as Ctrl-C, which the runner handles itself."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    heeded = threading.current_thread() is threading.main_thread() and task is not None
    if heeded and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        assert task is not None
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            await work
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
    else:
        await work
