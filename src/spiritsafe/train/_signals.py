"""Ctrl-C between steps, not inside one: an optimiser step that is cut in half cannot be resumed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

__all__ = ["Stop", "graceful_interrupt"]


@dataclass(slots=True)
class Stop:
    requested: bool = False


@contextlib.contextmanager
def graceful_interrupt() -> Iterator[Stop]:
    """The first SIGINT or SIGTERM sets `requested`; another one raises KeyboardInterrupt. Main thread only."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
