"""Which upstream gets a request: weights among those that answer, and how one that fails comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Collection

from spiritsafe.errors import BadInput
from spiritsafe.serve._config import GuardConfig, Upstream
from spiritsafe.serve._connection import Timeouts, UpstreamFailure
from spiritsafe.serve._pool import Headers, Pool
from spiritsafe.serve._tls import trusting

__all__ = ["UpstreamState", "Upstreams"]

_FAILURES = 3  # in a row, before an upstream is left alone for a while
_FIRST_REST_S, _LONGEST_REST_S = 1.0, 30.0


class UpstreamState:
    """One upstream as this process sees it. headers: what every request to it carries."""

    def __init__(self, config: Upstream, clock: Callable[[], float]) -> None:
        self.config = config
        timeouts = Timeouts(config.connect_s, config.timeout_s, config.total_s)
        tls = trusting(config.ca_file, f"upstreams.{config.name}") if config.ca_file is not None else None
        self.pool = Pool(config.base_url, timeouts, tls)
        self.headers: Headers = _headers(config)
        self._clock = clock
        self._failures = 0
        self.resting_until = 0.0
        self._checked_down = False
        self.credit = 0.0

    @property
    def healthy(self) -> bool:
        """True if requests may go there. After a rest one may, and its outcome decides."""
        return not self._checked_down and self._clock() >= self.resting_until

    def worked(self) -> None:
        """It answered a request."""
        self._failures = 0
        self.resting_until = 0.0

    def failed(self) -> None:
        """It could not be reached, was silent, or answered 5xx."""
        self._failures += 1
        if self._failures >= _FAILURES:
            rest = min(_FIRST_REST_S * 2 ** (self._failures - _FAILURES), _LONGEST_REST_S)
            self.resting_until = self._clock() + rest

    async def check(self) -> None:
        """Ask its health path; without one this does nothing."""
        if self.config.health_path is None:
            return
        path = "/" + self.config.health_path.lstrip("/")
        try:
            reply = await self.pool.request(b"GET", path.encode(), self.headers, absolute=True)
            await reply.read()
            self._checked_down = reply.status >= 400
        except UpstreamFailure:
            self._checked_down = True


class Upstreams:
    """All upstreams of a guard.

    Raises:
        BadInput: an API key's environment variable is not set, or a `ca_file` cannot be used.
    """

    def __init__(self, config: GuardConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.states = tuple(UpstreamState(upstream, clock) for upstream in config.upstreams)
        self._by_model = {
            model: tuple(state for state in self.states if model in state.config.models) for model in config.models
        }
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin the health checks."""
        for state in self.states:
            if state.config.health_path is not None:
                self._tasks.append(asyncio.create_task(_keep_checking(state)))

    def pick(self, model: str, tried: Collection[UpstreamState] = ()) -> UpstreamState | None:
        """The next upstream for a model: smooth weighted round robin among the healthy ones not `tried` yet.

        Where none is healthy, the one that has rested longest may try: a guard with one upstream must find out that it
        is back.
        """
        able = [state for state in self._by_model.get(model, ()) if state not in tried]
        healthy = [state for state in able if state.healthy]
        if not healthy:
            return min(able, key=lambda state: state.resting_until, default=None)
        if len(healthy) == 1:
            return healthy[0]
        for state in healthy:
            state.credit += state.config.weight
        best = max(healthy, key=lambda state: state.credit)
        best.credit -= sum(state.config.weight for state in healthy)
        return best

    @property
    def ready(self) -> bool:
        """True if every model has an upstream that may be asked."""
        return all(any(state.healthy for state in states) for states in self._by_model.values())

    def health(self) -> dict[str, bool]:
        """Healthy or not, by name."""
        return {state.config.name: state.healthy for state in self.states}

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for state in self.states:
            await state.pool.aclose()


async def _keep_checking(state: UpstreamState) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(state.config.connect_s, state.config.health_every_s)):
                await state.check()
        await asyncio.sleep(state.config.health_every_s)


def _headers(upstream: Upstream) -> list[tuple[bytes, bytes]]:
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", b"spiritsafe"),
    ]
    if upstream.api_key_env is not None:
        key = os.environ.get(upstream.api_key_env, "")
        if not key or any(ord(c) < 33 or ord(c) > 126 for c in key):
            raise BadInput(
                f"upstreams.{upstream.name}.api_key_env: the environment variable {upstream.api_key_env} is not set to"
                " a usable key"
            )
        headers.append((b"authorization", b"Bearer " + key.encode()))
    return headers
