"""What a plan leans on in time: the ledger's head, how old a commitment is, and what nothing outside vouches for."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritsafe.audit._plan import CanariesConfig, TwinsConfig
from spiritsafe.audit._times import first_time, parse_time
from spiritsafe.audit.tests._committed import Window, read_committed

if TYPE_CHECKING:
    from spiritsafe.audit._freeze import Frozen

__all__ = ["ledger_head", "unanchored", "warnings"]


def ledger_head(path: Path, test: TwinsConfig | CanariesConfig) -> dict[str, Any]:
    """{"ledger_head": {"seq", "hash"}, "committed": how many of the twins or canaries that the plan
    names it commits to}.

    Raises:
        BadInput: the file cannot be read, or its chain is not whole.
    """
    found, window = read_committed(path), Window.of(test.since, test.until)
    if test.kind == "canaries":
        committed = sum(window.holds(row.ts) for row in found.canaries)
    else:
        committed = sum(
            window.holds(row.ts) and test.account in (None, row.account) and test.model in (None, row.model)
            for row in found.twins
        )
    return {"ledger_head": {"seq": found.head[0], "hash": found.head[1]}, "committed": committed}


def unanchored(frozen: Frozen) -> list[str]:
    """What nothing outside will vouch for, one line each: with any of these a finding is at most a lead."""
    lines = []
    if frozen.plan.tsa is None and frozen.plan.signer is None:
        lines.append("plan: nothing outside will show when it was frozen; name a tsa, a signer, or both")
    for test in frozen.plan.tests:
        name = test.name or test.kind
        said = frozen.document["commitments"].get(name)
        if said is None:
            if test.kind == "radioactivity":
                lines.append(f"{name}: an engine's own key was never committed to; it could be chosen afterwards")
            elif test.kind in ("twins", "canaries"):
                lines.append(f"{name}: without the ledger nothing shows that these were committed to, or how many were")
        elif said["timestamp"] is None and "ledger_head" not in said:
            lines.append(f"{name}: the commitment has no timestamp; make one when you publish: audit timestamp FILE")
        elif said["timestamp"] is None:
            lines.append(f"{name}: only the ledger itself says when it was written; timestamp its export too")
    return lines


def warnings(frozen: Frozen) -> list[str]:
    """Commitments that are newer than what they should precede, as far as the inputs tell times."""
    lines = []
    for test in frozen.plan.tests:
        name = test.name or test.kind
        commitment = frozen.commitments.get(name)
        if commitment is None or test.kind != "radioactivity":
            continue
        made, what = _committed_at(frozen, name, commitment.created)
        first = first_time(frozen.inputs[test.texts])
        if first is not None and made is not None and made > first:
            lines.append(
                f"{name}: {what} {made:%Y-%m-%d %H:%M}, after the first of the texts ({first:%Y-%m-%d %H:%M} UTC): "
                "keys could have been chosen once the texts were known"
            )
        frozen_at = parse_time(frozen.document["frozen_at"])
        if made is not None and frozen_at is not None and made > frozen_at:
            lines.append(f"{name}: {what} {made:%Y-%m-%d %H:%M} UTC, after this plan was frozen: check the clocks")
    return lines


def _committed_at(frozen: Frozen, name: str, claimed: str) -> tuple[datetime | None, str]:
    token = frozen.document["commitments"][name]["timestamp"]
    if token is not None:
        from spiritsafe.audit._tsa import claimed_time

        return claimed_time(frozen.inputs[token].read_bytes()), "its commitment is timestamped"
    return parse_time(claimed), "its commitment says it was made"
