"""Work beside the requests: started, repeated, and stopped with the guard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from spiritsafe.errors import SpiritsafeError

__all__ = ["Background"]

_log = logging.getLogger("spiritsafe.serve")


class Background:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something until it ends or `stop` is called."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Do it again and again; a failure is logged and it is tried at the next turn."""
        self.start(self._repeat(seconds, work))

    async def stop(self) -> None:
        """Cancel what runs and wait for it to end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except (SpiritsafeError, OSError) as error:  # the database may come back; a key file may be mended
                _log.warning("%s", error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background work ended", exc_info=error)
