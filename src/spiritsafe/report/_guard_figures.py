"""Everything the page of a guard shows, as numbers: read from its database, whether the guard runs or not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from spiritsafe.ledger._totals import day_of
from spiritsafe.progress import Progress
from spiritsafe.report._guard_accounts import Evidence, People, read_evidence, read_people
from spiritsafe.report._guard_books import Books, read_books
from spiritsafe.report._guard_limits import NearLimits, read_near_limits
from spiritsafe.report._guard_sums import Sums, read_sums
from spiritsafe.serve._config import GuardConfig
from spiritsafe.state import Database

__all__ = ["DAYS", "GuardFigures", "read_figures"]

DAYS = 31
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class GuardFigures:
    """at: when it was read, Unix seconds.  since: the first UTC day of the window, YYYY-MM-DD.  most_rows: the most
    rows of the ledger that were read.  names: whether names and free texts are in it."""

    at: float
    since: str
    most_rows: int
    names: bool
    database: str
    books: Books
    sums: Sums
    near: NearLimits
    people: People
    evidence: Evidence

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


async def read_figures(
    db: Database,
    config: GuardConfig,
    now: float,
    *,
    rows: int,
    names: bool = True,
    public_keys: Collection[str] = (),
    progress: Progress | None = None,
) -> GuardFigures:
    """Read a guard's database.

    now: Unix seconds.  rows: the most ledger rows to read and check.  names: with names of accounts, organisations and
    deciders, and reasons.  public_keys: hex; whose checkpoints count.

    Raises:
        Unavailable: the database is away.
        BadInput: an account's limits in the database cannot be read.
    """
    midnight = (now // _DAY_S - (DAYS - 1)) * _DAY_S
    return GuardFigures(
        at=now,
        since=day_of(midnight),
        most_rows=rows,
        names=names,
        database=db.dialect,
        books=await read_books(db, since=midnight, most=rows, names=names, public_keys=public_keys, progress=progress),
        sums=await read_sums(db, now, DAYS, names=names),
        near=await read_near_limits(db, config, now, names=names),
        people=await read_people(db, config, names=names),
        evidence=await read_evidence(db),
    )
