"""The page of a guard: one file that an operator can show around."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritsafe.errors import BadInput
from spiritsafe.progress import Progress
from spiritsafe.report._guard_figures import GuardFigures, read_figures
from spiritsafe.report._guard_view import guard_view
from spiritsafe.report._page import write_page
from spiritsafe.serve._config import GuardConfig
from spiritsafe.state import Database

__all__ = ["GUARD_ROWS", "GuardReport", "render_guard"]

GUARD_ROWS = 100_000
_SQLITE = "sqlite:///"


@dataclass(frozen=True, slots=True)
class GuardReport:
    """A page that was written, and the figures on it."""

    path: Path
    figures: GuardFigures

    def to_dict(self) -> dict[str, Any]:
        """As `report --json` prints it."""
        return {"path": str(self.path), "figures": self.figures.to_dict()}


async def render_guard(
    config: GuardConfig,
    out: Path,
    *,
    now: float | None = None,
    rows: int = GUARD_ROWS,
    names: bool = True,
    public_keys: Collection[str] = (),
    progress: Progress | None = None,
) -> GuardReport:
    """Write a guard's report to `out`, atomically, from its database alone; the guard may run or not.

    now: Unix seconds; the present unless given.  rows: the newest ledger rows that are checked and read for statuses
    and times.  names: with names of accounts, organisations, clusters and deciders, and reasons as they were written.
    public_keys: hex; checkpoints by other keys are a problem.

    Raises:
        BadInput: there is no such database, its schema is another version's, or `out` cannot be written.
        Unavailable: the database is away.
    """
    _check_there(config.state.database)
    async with await Database.open(config.state.database, migrate=False) as db:
        figures = await read_figures(
            db,
            config,
            time.time() if now is None else now,
            rows=rows,
            names=names,
            public_keys=public_keys,
            progress=progress,
        )
    try:
        write_page(out, "guard.html.j2", guard_view(figures, config), styles=("report.css", "guard.css"))
    except OSError as error:
        raise BadInput(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
    return GuardReport(out, figures)


def _check_there(url: str) -> None:
    """Opening a SQLite file that is not there would make one."""
    if url.startswith(_SQLITE) and not Path(url.removeprefix(_SQLITE)).is_file():
        raise BadInput(f"database {url}: there is no such file here; start `spiritsafe serve` once, or change folder")
