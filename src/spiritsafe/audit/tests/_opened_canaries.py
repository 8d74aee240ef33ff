"""Opened canaries, each held against the event that commits to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritsafe.audit.tests._committed import CanaryRow, Committed, Window, opened_lines
from spiritsafe.errors import BadInput
from spiritsafe.ledger import verify_canary
from spiritsafe.ledger._evidence import canary_commit
from spiritsafe.records import Message, Prompt

__all__ = ["OpenedCanaries", "OpenedCanary", "read_canaries"]


@dataclass(frozen=True, slots=True)
class OpenedCanary:
    """published: index of the variant that was to be published."""

    id: str
    prompt: Prompt
    variants: tuple[str, ...]
    published: int


@dataclass(frozen=True, slots=True)
class OpenedCanaries:
    """canaries: by id, in the ledger's order.  sealed: how many variants each canary has that was committed to in the
    time the plan names and is not opened; None where there is no ledger.  others: opened, and of another time."""

    canaries: Mapping[str, OpenedCanary]
    sealed: tuple[int, ...] | None
    others: int


def read_canaries(path: Path, ledger: Committed | None, window: Window) -> OpenedCanaries:
    """The canaries of a file that the plan names, verified.

    Raises:
        BadInput: an entry is no canary opened with all its variants, is not what was committed to, or is there twice.
    """
    found: dict[str, tuple[int, OpenedCanary]] = {}
    events = {} if ledger is None else {row.seq: row for row in ledger.canaries if window.holds(row.ts)}
    earlier = () if ledger is None else tuple(row for row in ledger.canaries if not window.holds(row.ts))
    others = 0
    for number, line in opened_lines(path, array=True):
        where = f"{path}, entry {number}"
        canary = _canary(where, line)
        if canary.id in found:
            raise BadInput(f"{where}: canary {canary.id[:80]} is there twice; leave one out")
        if ledger is None:
            found[canary.id] = (number, canary)
        elif (row := _event(line, canary.id, events.values())) is not None:
            del events[row.seq]
            found[canary.id] = (row.seq, canary)
        elif _event(line, canary.id, earlier) is not None:
            others += 1
        else:
            raise BadInput(f"{where}: canary {canary.id[:80]} is not what the ledger commits to")
    ordered = sorted(found.values(), key=lambda one: one[0])
    sealed = None if ledger is None else tuple(row.size for row in events.values())
    return OpenedCanaries({canary.id: canary for _, canary in ordered}, sealed, others)


def _event(line: Mapping[str, Any], canary_id: str, rows: Any) -> CanaryRow | None:
    mine = (row for row in rows if row.canary == canary_id and row.size == len(line["variants"]))
    return next((row for row in mine if verify_canary(line, row.commit)), None)


def _canary(where: str, line: Mapping[str, Any]) -> OpenedCanary:
    if "variants" not in line and "leaves" in line:
        raise BadInput(f"{where}: only its published answer is opened; use `evidence canary show ID --secret --json`")
    try:
        canary_id, prompt, published = line["id"], line["prompt"], line["published"]
        variants, salt = tuple(line["variants"]), bytes.fromhex(line["salt"])
        if not all(isinstance(text, str) and text for text in (canary_id, prompt, *variants)):
            raise TypeError
        # against itself: of the right form, whatever it was committed to
        if not verify_canary(line, canary_commit(canary_id, prompt, variants, published, salt)):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise BadInput(f"{where}: not an opened canary; give `evidence canary show ID --secret --json`") from None
    return OpenedCanary(canary_id, Prompt((Message("user", prompt),)), variants, published)
