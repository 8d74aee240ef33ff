"""Crash journals for tests: a process that is gone, and what is found of it."""

from __future__ import annotations

import os
from pathlib import Path

from spiritsafe.ledger import Journal, LedgerRow, recover

FACTS = {"account": "acct_1", "ticket": {"nano": 12}, "tokens_in": 40}


def abandon(journal: Journal) -> None:
    """As if the process were gone: the file stays, its lock does not."""
    os.close(journal._fd)
    journal._fd = -1


def found(folder: Path) -> dict[str, tuple[dict[str, object], int | None, LedgerRow | None]]:
    orphans = recover(folder)
    state = {o.request_id: (o.facts, o.released_tokens, o.row) for o in orphans}
    for orphan in orphans:
        orphan.done()
    return state
