"""The collector: keeps as many requests in flight as the teacher bears, inside hard caps, and loses no answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import Sequence

from spiritsafe.collect._commit import disk_full
from spiritsafe.collect._config import CollectConfig
from spiritsafe.collect._jobs import Job, Questions, tokens_bound
from spiritsafe.collect._limiter import Limiter
from spiritsafe.collect._store import Store
from spiritsafe.errors import Interrupted, SpiritsafeError
from spiritsafe.progress import Progress
from spiritsafe.records import Usage
from spiritsafe.spend import Budget, OverBudget, Price, Spend, Ticket, dollars
from spiritsafe.teachers import Answer, Teacher, TeacherError
from spiritsafe.wire import completion_bytes

__all__ = ["Collector"]

_GRACE_S = 10.0  # what requests in flight get to finish after Ctrl-C
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 60.0
_REFUSED_AT_FIRST = 5  # requests refused, or answered with garbage, before any success: it will not get better
_REFUSED_LATER = 50  # the same after a success
_TRIES_TO_CONNECT = 3
_CONGESTION = ("rate_limited", "server", "timeout", "network")


class Collector:
    """One session of asking. `run` it once.

    fatal: why it stopped early, if it did; `over`: the cap that stopped it.
    """

    def __init__(
        self,
        store: Store,
        teacher: Teacher,
        price: Price | None,
        budget: Budget,
        limiter: Limiter,
        config: CollectConfig,
        questions: Questions,
        progress: Progress,
    ) -> None:
        self._store = store
        self._teacher = teacher
        self._price = price
        self._budget = budget
        self._limiter = limiter
        self._config = config
        self._questions = questions
        self._progress = progress
        self._ready: deque[Job] = deque()
        self._waiting = 0  # jobs that sleep until their next try
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._last_shown = 0.0
        self._refused_in_a_row = 0
        self._ever = False
        self.done = 0
        self.total = 0
        self.tokens_out = 0
        self.noted: Counter[str] = Counter()
        self.fatal: SpiritsafeError | None = None
        self.over: OverBudget | None = None

    async def run(self, jobs: Sequence[Job], already_done: int) -> None:
        """Ask all `jobs`; returns when each is answered or given up, or a cap or a fatal error stopped it.

        Raises:
            Interrupted: the task was cancelled (Ctrl-C); what came in within a short grace is saved.
        """
        self._ready.extend(jobs)
        self.done, self.total = already_done, already_done + len(jobs)
        self._started = time.monotonic()
        try:
            await self._dispatch()
        except asyncio.CancelledError:
            await self._drain(grace=_GRACE_S)
            raise Interrupted(
                f"stopped with {self.done} of {self.total} requests answered and saved; run again to continue"
            ) from None
        except BaseException:
            await self._drain(grace=0)
            raise
        finally:
            await self._store.aclose()
        self._show(force=True)

    async def _dispatch(self) -> None:
        while self._ready or self._tasks or self._waiting:
            stopping = self.fatal is not None or self.over is not None
            if self.fatal is not None and self._tasks:
                await self._drain(grace=_GRACE_S)
            if stopping and not self._tasks:
                return
            if not stopping and self._ready and len(self._tasks) < self._limiter.limit and not self._paused():
                ticket = self._reserve(self._ready[0])
                if ticket is not None:
                    task = asyncio.get_running_loop().create_task(self._attempt(self._ready.popleft(), ticket))
                    self._tasks.add(task)
                    task.add_done_callback(self._finished)
                    continue
                if self.over is not None:
                    continue
            await self._wake.wait()
            self._wake.clear()

    def _reserve(self, job: Job) -> Ticket | None:
        """Room for a job's worst case; None if there is none now. Sets `over` if there will be none."""
        tokens_in, tokens_out = tokens_bound(job.request)
        pico = 0 if self._price is None else self._price.worst_case(tokens_in, tokens_out)
        try:
            return self._budget.reserve(Spend(pico, tokens_in + tokens_out, 1))
        except OverBudget as refusal:
            if refusal.final or not self._tasks:
                self.over = refusal
            return None

    def _paused(self) -> bool:
        seconds = self._limiter.pause()
        if seconds > 0:
            asyncio.get_running_loop().call_later(seconds + random.random() * 0.1, self._wake.set)  # noqa: S311
        return seconds > 0

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()
        error = None if task.cancelled() else task.exception()
        if error is not None and self.fatal is None:
            # A store that cannot be written, or a fault of ours: no further request may leave.
            if isinstance(error, SpiritsafeError):
                self.fatal = error
            else:
                self.fatal = SpiritsafeError(f"collection failed: {error!r}")
                self.fatal.__cause__ = error

    async def _drain(self, grace: float) -> None:
        """Let requests in flight finish, for a while; cancel the rest, whose reservations then count as spent."""
        if self._tasks and grace:
            self._progress.say(f"stopping: up to {grace:.0f} s for {len(self._tasks)} requests in flight to come in")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ── one attempt ──

    async def _attempt(self, job: Job, ticket: Ticket) -> None:
        request = job.attempt()
        settled = False
        try:
            attempt = await self._store.reserve(job.hash, request.sampling.seed, ticket.amount)
            started = time.monotonic()
            try:
                answer = await self._teacher.complete(request)
            except TeacherError as error:
                settled = True
                await self._failed(job, ticket, attempt, started, error)
                return
            settled = True
            await self._answered(job, ticket, attempt, started, answer)
        finally:
            if not settled:  # cancelled, or a fault: it may have been sent, so it counts as it does in the store
                self._budget.settle(ticket, ticket.amount)

    async def _answered(self, job: Job, ticket: Ticket, attempt: int, started: float, answer: Answer) -> None:
        usage = answer.usage
        actual = self._charge(usage) if answer.usage_reported else ticket.amount
        if not answer.usage_reported:
            self.noted["without usage: charged at the worst case"] += 1
        self._budget.settle(ticket, actual)
        self._limiter.succeeded(time.monotonic() - started, len(self._tasks))
        self._refused_in_a_row = 0
        self._ever = True
        self.tokens_out += usage.output_tokens
        reason, most = self._judge(answer)
        raw = answer.raw or completion_bytes(answer.replies, usage, answer.model, answer.watermark_key_id)
        kept = answer.replies[: job.request.n]
        again = job.bad < most
        rest = None if again else self._questions.after(job, len(kept))
        then = None if rest is None else (rest.hash, rest.request)
        await self._store.answered(attempt, job.hash, raw, usage, actual, replies=len(kept), reason=reason, then=then)
        if self._config.logprobs and any(reply.logprobs is None and reply.text for reply in kept):
            self.noted["without logprobs"] += 1
        if again:
            job.bad += 1
            self._ready.append(job)
            return
        if reason:
            self.noted[reason] += 1
        if rest is not None:
            self._ready.append(rest)
            self.total += 1
        self._one_done()

    def _judge(self, answer: Answer) -> tuple[str | None, int]:
        """What is wrong with an answer, and how often such a one is asked again."""
        replies = answer.replies
        if all(not reply.text.strip() for reply in replies):
            return "empty", self._config.retry_bad
        if any(reply.finish_reason == "content_filter" for reply in replies):
            return "content_filter", 0
        if any(reply.finish_reason == "error" for reply in replies):
            return "error", self._config.retry_bad
        if any(reply.finish_reason == "length" for reply in replies):
            return "truncated", self._config.retry_truncated
        return None, 0

    async def _failed(self, job: Job, ticket: Ticket, attempt: int, started: float, error: TeacherError) -> None:
        # What the teacher turned down costs nothing but the request; what may have been billed keeps its reservation.
        actual = ticket.amount if error.billed else Spend(requests=1)
        self._budget.settle(ticket, actual)
        await self._store.failed(attempt, "lost" if error.billed else "refunded", actual, f"{error.kind}: {error}")
        self.noted[f"retried after {error.kind}"] += 1
        if error.kind in _CONGESTION:
            self._limiter.congested(started, error.retry_after)
            if self._limiter.strikes > self._config.retries and self.fatal is None:
                times = f"{self._limiter.strikes} times in a row, with growing pauses"
                self.fatal = SpiritsafeError(f"{error} ({times}); run again later to continue")
        if self._is_fatal(job, error):
            self.fatal = self.fatal or _fatal(error, job, self._config)
            return
        if error.kind == "malformed":
            job.bad += 1
            spent = job.bad > self._config.retry_bad
        else:
            job.failures += 1
            spent = not error.transient or job.failures > self._config.retries
        if spent:
            await self._give_up(job, error)
        else:
            self._try_later(job, error)

    def _is_fatal(self, job: Job, error: TeacherError) -> bool:
        if error.kind == "auth":
            return True
        if error.kind in ("bad_request", "malformed"):
            self._refused_in_a_row += 1
            return self._refused_in_a_row >= (_REFUSED_LATER if self._ever else _REFUSED_AT_FIRST)
        return error.kind == "network" and not self._ever and job.failures + 1 >= _TRIES_TO_CONNECT

    async def _give_up(self, job: Job, error: TeacherError) -> None:
        await self._store.give_up(job.hash, f"{error.kind}: {error}")
        self.noted[f"no answer: {error.kind}"] += 1
        self._one_done()

    def _try_later(self, job: Job, error: TeacherError) -> None:
        tries = max(1, job.failures)
        backoff = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (tries - 1)) * (0.5 + random.random())  # noqa: S311
        delay = max(backoff, error.retry_after or 0.0)
        self._waiting += 1
        asyncio.get_running_loop().call_later(delay, self._again, job)

    def _again(self, job: Job) -> None:
        self._waiting -= 1
        self._ready.appendleft(job)  # what has failed before is finished first
        self._wake.set()

    def _charge(self, usage: Usage) -> Spend:
        pico = 0 if self._price is None else self._price.cost(usage)
        return Spend(pico, usage.input_tokens + usage.output_tokens, 1)

    def _one_done(self) -> None:
        self.done += 1
        if self._store.disk_was_full and self.fatal is None:
            self.fatal = disk_full(self._store.path)
        self._show()

    def _show(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._last_shown < 0.1:
            return
        self._last_shown = now
        rate = self.tokens_out / max(now - self._started, 1e-3)
        cap = "" if self._budget.caps.usd is None else f"/${self._budget.caps.usd:g}"
        spent = f"${dollars(self._budget.spent.pico):.4f}{cap}"
        note = f"{rate:.0f} tok/s · {spent} · {len(self._tasks)} in flight"
        self._progress.update("collect", self.done, self.total, note)


def _fatal(error: TeacherError, job: Job, config: CollectConfig) -> SpiritsafeError:
    hint = ""
    said = str(error).lower()
    if error.kind == "bad_request" and "logprob" in said and config.logprobs:
        hint = f"; collect.logprobs is {config.logprobs}: lower it, 0 asks for none"
    elif error.kind == "bad_request" and "seed" in said and config.seed is not None:
        hint = "; set collect.seed: null to send no seed"
    return SpiritsafeError(f"{error}{hint}")
