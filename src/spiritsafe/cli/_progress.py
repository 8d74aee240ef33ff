"""Draws progress on stderr: live bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spiritsafe.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["watching"]

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def watching(quiet: bool = False) -> Iterator[Progress]:
    """A progress display for the length of a command."""
    if quiet or not sys.stderr.isatty():
        yield _Lines(quiet)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Bars(*columns, console=Console(stderr=True), refresh_per_second=5) as bars:
        yield _Live(bars)


@dataclass(slots=True)
class _Live:
    bars: Bars
    tasks: dict[str, TaskID] = field(default_factory=dict)

    def update(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        bars = self.bars
        if stage not in self.tasks:
            self.tasks[stage] = bars.add_task(stage, total=total, note=note)
        bars.update(self.tasks[stage], completed=done, total=total, note=note)

    def say(self, message: str) -> None:
        self.bars.console.print(message, highlight=False, markup=False)


@dataclass(slots=True)
class _Lines:
    quiet: bool
    started: dict[str, tuple[float, float]] = field(default_factory=dict)
    spoken: dict[str, float] = field(default_factory=dict)

    def update(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        now = time.monotonic()
        first_time, first_done = self.started.setdefault(stage, (now, done))
        finished = total is not None and done >= total
        if self.quiet or (not finished and now - self.spoken.get(stage, first_time) < _SECONDS_BETWEEN_LINES):
            return
        self.spoken[stage] = now if not finished else float("inf")
        of = f"{done:,.10g}" if total is None else f"{done:,.10g}/{total:,.10g}"
        eta = ""
        if total is not None and not finished and done > first_done:
            eta = f", about {(now - first_time) / (done - first_done) * (total - done):.0f} s left"
        print(f"{stage}: {of}{eta}" + (f" ({note})" if note else ""), file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        if not self.quiet:
            print(message, file=sys.stderr, flush=True)
