"""Local weights as a teacher: callers wait on the event loop, one thread drives the engine for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spiritsafe.errors import BadInput, Refused
from spiritsafe.records import Message, Reply, Request, Sampling, TeacherInfo, Usage
from spiritsafe.teachers._base import Answer, TeacherError
from spiritsafe.teachers._engine import Delta, Engine, GenerateJob, Generation, Ticket
from spiritsafe.teachers._sampling import generator
from spiritsafe.teachers._weights import Weights, load_weights
from spiritsafe.tokens import prompt_ids

if TYPE_CHECKING:
    from spiritsafe.keys import KeyId
    from spiritsafe.watermark._marker import Marker, Markers

__all__ = ["Call", "LocalTeacher"]

_GATHER_S = 0.002  # an idle engine waits this long for company: requests that arrive together start together

Event = Delta | Generation | TeacherError


class LocalTeacher:
    """A `Teacher` over local weights. Concurrent calls share the engine's batch.

    source: see `load_weights`; or weights already loaded.  model: the name replies carry.
    revision: see `load_weights`.  max_batch: replies generated together.
    markers: mark every reply.

    Raises:
        BadInput: the weights cannot be loaded, or the marks are for another tokenizer.
    """

    def __init__(
        self,
        source: str | Path | Weights,
        *,
        model: str | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        max_batch: int = 32,
        markers: Markers | None = None,
    ) -> None:
        self.weights = source if isinstance(source, Weights) else load_weights(source, dtype, device, revision)
        if markers is not None:
            markers.check_tokenizer(self.weights.tokenizer_hash, self.weights.source)
        self._markers = markers
        self.engine = Engine(self.weights, max_batch)
        name = Path(self.weights.source)
        self._info = TeacherInfo(
            model=model or (name.stem if name.suffix == ".gguf" else self.weights.source),
            revision=self.weights.revision,
            tokenizer_hash=self.weights.tokenizer_hash,
            template_hash=self.weights.template_hash,
            marks=None if markers is None else f"{markers.key_id()} greedy={markers.greedy}",
        )
        # what the engine's thread should begin; None to stop
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._live: dict[Ticket, Call] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="spiritsafe-engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> TeacherInfo:
        return self._info

    def prompt_ids(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """The conversation through the chat template.

        Raises:
            TeacherError: the template refuses it (`bad_request`).
        """
        try:
            return tuple(prompt_ids(self.weights.tokenizer, messages))
        except Exception as error:  # templates are programs: they raise what they like
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TeacherError("bad_request", f"the model's chat template refuses these messages: {reason}") from None

    async def complete(self, request: Request) -> Answer:
        """Answer a request. Replies carry token ids, the end-of-turn token included; log-probabilities carry both
        ids and bytes.

        Raises:
            TeacherError: the request cannot be run, or the engine failed.
        """
        prompt = self.prompt_ids(request.prompt.messages)
        call = self.start(prompt, request.sampling, request.n)
        done = await call.results()
        replies = tuple(Reply(g.text, g.finish_reason, g.token_ids, g.logprobs) for g in done)
        usage = Usage(len(prompt), sum(len(g.token_ids) for g in done))
        return Answer(replies, usage, self._info.model, watermark_key_id=call.watermark_key_id)

    def key_id(self, asked: str | None) -> KeyId | None:
        """The key id that a request for `asked` is marked under; None if this teacher makes no marks.

        Raises:
            BadInput: no such key here, or this teacher makes no marks.
            Refused: that key marks no more.
        """
        if self._markers is not None:
            return self._markers.key_id(asked)
        if asked is not None:
            raise BadInput("this teacher makes no marks; leave watermark_key_id out, or start it with --watermark")
        return None

    def start(
        self,
        prompt: tuple[int, ...],
        sampling: Sampling,
        n: int = 1,
        *,
        deltas: bool = False,
        key_id: KeyId | None = None,
    ) -> Call:
        """Begin n replies. Call it on a running event loop, and cancel what you do not read to its end.

        deltas: also deliver each step's `Delta`.  key_id: from `key_id`; a teacher that marks has a default.

        Raises:
            TeacherError: the request cannot be run (`bad_request`), or the teacher is closed (`server`).
        """
        if self._closed:
            raise TeacherError("server", "the teacher is closed; open it again")
        try:
            markers = [self._marker(key_id, sampling, index) for index in range(n)]
            jobs = [GenerateJob(prompt, sampling, index, processor=m) for index, m in enumerate(markers)]
            self.engine.check(jobs[0])
        except (BadInput, Refused) as error:
            raise TeacherError("bad_request", str(error)) from None
        call = Call(n, asyncio.get_running_loop(), markers[0])
        self._inbox.put(functools.partial(self._begin, jobs, call, deltas))
        return call

    def _marker(self, key_id: KeyId | None, sampling: Sampling, index: int) -> Marker | None:
        if self._markers is None:
            return None
        return self._markers.marker(
            key_id or self._markers.key_id(),
            generator(sampling.seed, index),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )

    async def aclose(self) -> None:
        """Stop the engine; whoever still waits gets a `TeacherError`."""
        self._closed = True
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    # ── the engine's thread ──────────────────────────────────────────────────────────────────────

    def _begin(self, jobs: Sequence[GenerateJob], call: Call, deltas: bool) -> None:
        for job in jobs:
            deliver = functools.partial(call.deliver, job.index)
            ticket = self.engine.submit(job, deliver, deliver if deltas else None)
            call.tickets.append(ticket)
            self._live[ticket] = call
        if call.cancelled:  # perhaps before there were tickets to cancel
            call.cancel()

    def _run(self) -> None:
        while self._take():
            try:
                self.engine.step()
                self._live = {t: call for t, call in self._live.items() if not (t.cancelled or t.finished)}
            except Exception as failure:  # whatever it was, callers must hear of it rather than wait for ever
                self.engine.clear()
                self._fail(TeacherError("server", f"the engine failed: {type(failure).__name__}: {failure}"))
        self.engine.clear()
        self._fail(TeacherError("server", "the teacher was closed before it had answered"))

    def _take(self) -> bool:
        """Start what has arrived; waits while there is nothing to do. False when told to stop."""
        if not self.engine.busy:
            begin = self._inbox.get()
            time.sleep(_GATHER_S)
            if not self._start(begin):
                return False
        while not self._inbox.empty():
            if not self._start(self._inbox.get()):
                return False
        return True

    def _start(self, begin: Callable[[], None] | None) -> bool:
        if begin is not None:
            begin()
            return True
        while not self._inbox.empty():  # begin what came too late, so that it fails like what runs
            if late := self._inbox.get():
                late()
        return False

    def _fail(self, error: TeacherError) -> None:
        for ticket, call in self._live.items():
            call.deliver(ticket.job.index, error)
        self._live = {}


class Call:
    """n replies on their way from the engine's thread to a coroutine.

    watermark_key_id: the key they are marked with.  watermark_greedy: what became of a greedy request.
    """

    def __init__(self, n: int, loop: asyncio.AbstractEventLoop, marker: Marker | None = None) -> None:
        self.watermark_key_id = None if marker is None else str(marker.key_id)
        self.watermark_greedy = None if marker is None else marker.greedy
        self._unfinished = n
        self._loop = loop
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.tickets: list[Ticket] = []
        self.cancelled = False

    def deliver(self, index: int, event: Event) -> None:
        """Called by the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.cancel()

    def cancel(self) -> None:
        """Give up what is unfinished."""
        self.cancelled = True
        for ticket in self.tickets:
            ticket.cancel()

    async def events(self) -> AsyncGenerator[tuple[int, Delta | Generation]]:
        """(reply index, event): deltas if asked for, and each reply's generation last. Cancels the call if abandoned.

        Raises:
            TeacherError: the engine failed or was closed.
        """
        try:
            while self._unfinished:
                index, event = await self._events.get()
                if isinstance(event, TeacherError):
                    raise event
                self._unfinished -= isinstance(event, Generation)
                yield index, event
        finally:
            self.cancel()

    async def results(self) -> list[Generation]:
        """The finished replies, in order.

        Raises:
            TeacherError: the engine failed or was closed.
        """
        async with contextlib.aclosing(self.events()) as events:
            done = {index: event async for index, event in events if isinstance(event, Generation)}
        return [done[index] for index in sorted(done)]
