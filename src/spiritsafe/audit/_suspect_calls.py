"""One call to a suspect's API: when it may leave, what it may cost, how often it is tried."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from spiritsafe.audit._suspect_spend import Purse
from spiritsafe.collect._limiter import Limiter
from spiritsafe.records import Usage
from spiritsafe.spend import Spend
from spiritsafe.teachers import TeacherError

__all__ = ["Answered", "Calls", "all_of", "identity_of"]

_TRIES = 6
_TRIES_TO_CONNECT = 3
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 60.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What a call brought, what it used (None: not reported), and what the answer said of itself."""

    value: Any
    usage: Usage | None
    model: str | None = None
    fingerprint: str | None = None
    flaw: str | None = None


class Calls:
    """Calls of one suspect, as many at once as its API bears. Every one is reserved before it leaves.

    backoff_s: the first pause after a failure that may pass; doubles from there.
    """

    def __init__(self, purse: Purse, timeout_s: float, backoff_s: float = _FIRST_BACKOFF_S) -> None:
        self._purse = purse
        self._limiter = Limiter(None, patience=timeout_s / 4)
        self._backoff_s = backoff_s
        self._running = 0
        self._wake = asyncio.Condition()
        self._ever = False

    async def make(self, tokens_in: int, tokens_out: int, send: Callable[[], Awaitable[Answered]]) -> Any:
        """The value of an answer to `send`, which takes at most so many tokens; tried again where that may help.

        Raises:
            TeacherError: no usable answer.
            OverBudget: there is no room for another request.
        """
        tries = 0
        while True:
            await self._enter()
            try:
                return await self._once(tokens_in, tokens_out, send)
            except TeacherError as error:
                tries += 1
                # a refused 408 costs nothing and is an answer; a timeout that may be billed is silence
                silent = error.kind == "network" or (error.kind == "timeout" and error.billed)
                unreachable = silent and not self._ever and tries >= _TRIES_TO_CONNECT
                if not error.transient or unreachable or tries >= _TRIES:
                    raise _of_suspect(error) from None
                pause = min(_LONGEST_BACKOFF_S, self._backoff_s * 2 ** (tries - 1)) * (0.5 + random.random())  # noqa: S311
                wait = max(pause, error.retry_after or 0.0)
            finally:
                await self._leave()
            await asyncio.sleep(wait)

    async def _once(self, tokens_in: int, tokens_out: int, send: Callable[[], Awaitable[Answered]]) -> Any:
        reserved = await self._purse.reserve(tokens_in, tokens_out)
        started = time.monotonic()
        try:
            answer = await send()
        except TeacherError as error:
            # what was turned down costs nothing but the request; what may have been billed keeps its reservation
            spent = reserved.worst if error.billed else Spend(requests=1)
            self._purse.settle(reserved, spent, error=error.kind)
            if error.kind in ("rate_limited", "server", "timeout", "network"):
                self._limiter.congested(started, error.retry_after)
            raise
        except BaseException:  # cancelled, or a fault: it may have been sent
            self._purse.settle(reserved, reserved.worst, error="broken off")
            raise
        spent = reserved.worst if answer.usage is None else self._purse.cost(answer.usage)
        self._purse.settle(reserved, spent, model=answer.model, fingerprint=answer.fingerprint, flaw=answer.flaw)
        self._limiter.succeeded(time.monotonic() - started, self._running)
        self._ever = True
        return answer.value

    async def _enter(self) -> None:
        while True:
            async with self._wake:
                await self._wake.wait_for(lambda: self._running < self._limiter.limit)
                pause = self._limiter.pause()
                if pause <= 0:
                    self._running += 1
                    return
            await asyncio.sleep(pause)

    async def _leave(self) -> None:
        self._running -= 1
        async with self._wake:
            self._wake.notify_all()


def _of_suspect(error: TeacherError) -> TeacherError:
    said = str(error).replace("teacher http", "suspect http", 1).replace("teacher.api_key_env", "subject.api_key_env")
    return TeacherError(error.kind, said, retry_after=error.retry_after, billed=error.billed)


def identity_of(raw: bytes | None) -> tuple[str | None, str | None]:
    """(model, system_fingerprint) as an answer's body names them."""
    try:
        data = orjson.loads(raw or b"null")
    except orjson.JSONDecodeError:
        return None, None
    if not isinstance(data, dict):
        return None, None
    model, mark = data.get("model"), data.get("system_fingerprint")
    return model if isinstance(model, str) else None, mark if isinstance(mark, str) else None


async def all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order. If one fails the others are broken off, not left running and spending."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
