"""Check 3, order in time: commitment, release, plan, first question.

A time that nothing outside vouches for is a claim, and the check then says `unanchored`; a claim that contradicts the
order fails like any other.

Clocks differ: an authority's, a guard's and an auditor's may be two minutes apart before it counts against a case.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from spiritsafe.audit._anchors import unanchored
from spiritsafe.audit._inputs import name_of
from spiritsafe.audit._plan import CanariesConfig, RadioactivityConfig, TwinsConfig
from spiritsafe.audit._times import first_time, parse_time
from spiritsafe.audit._types import Record
from spiritsafe.audit._verify_check import Check, Given, Opened
from spiritsafe.audit.tests._committed import Window, opened_lines, read_committed

if TYPE_CHECKING:
    from spiritsafe.audit._frozen import Frozen

__all__ = ["check_order"]

_SKEW = timedelta(minutes=2)


def check_order(
    case: Opened,
    frozen: Frozen,
    attempts: Sequence[Mapping[str, Any]],
    records: Sequence[Record],
    given: Given,
    check: Check,
) -> None:
    """records: of the suspect and of all controls."""
    planned = _planned(case, frozen, given, check)
    if planned is None:
        return
    for test in frozen.plan.tests:
        if isinstance(test, RadioactivityConfig) and test.commitment is not None:
            _keys(case, frozen, test, planned, given, check)
        elif isinstance(test, TwinsConfig | CanariesConfig) and test.ledger is not None:
            _ledger(case, frozen, test, planned, given, check)
    check.loose += unanchored(frozen)
    _questions(planned, attempts, records, check)


def _planned(case: Opened, frozen: Frozen, given: Given, check: Check) -> datetime | None:
    """When the plan stood, at the latest."""
    claimed = parse_time(frozen.document["frozen_at"])
    if claimed is None:
        check.failures.append("plan.json: frozen_at is no time")
        return None
    stamped = case.stamps.get("plan.json")
    known = given.signer is not None and given.signer.hex() == frozen.plan.signer
    if stamped is None:
        if not known and (frozen.plan.signer is not None or frozen.plan.tsa is not None):
            check.loose.append("plan: no timestamp, and its signer is not known from elsewhere: give --signer")
        return claimed
    time, anchored = stamped
    if not anchored and not known:
        check.loose.append("plan: its timestamp is of an authority known from nowhere else: give its root with --tsa")
    check.must(abs(time - claimed) <= _SKEW, f"plan: says it was frozen {_at(claimed)}, its timestamp says {_at(time)}")
    return time


def _keys(
    case: Opened, frozen: Frozen, test: RadioactivityConfig, planned: datetime, given: Given, check: Check
) -> None:
    name, file = name_of(test), str(test.commitment)
    made = parse_time(frozen.commitments[name].created)
    if (stamped := case.stamps.get(file)) is not None:
        made, anchored = stamped
        _hold(anchored, f"{name}: the commitment", given, check)
    if made is None:
        check.failures.append(f"{name}: its commitment says no time")
        return
    released = first_time(frozen.inputs[test.texts])
    if released is not None:
        what = f"{name}: its keys were committed to {_at(made)}, but the first of its texts is of {_at(released)}"
        check.must(made <= released + _SKEW, f"{what}: they could have been chosen once the texts were known")
        check.must(released <= planned + _SKEW, f"{name}: its texts begin {_at(released)}, after the plan")
    elif test.supervised:
        check.loose.append(
            f"{name}: its texts say no time, so nothing shows that they were released after the commitment"
        )
    check.must(
        made <= planned + _SKEW, f"{name}: its keys were committed to {_at(made)}, after the plan ({_at(planned)})"
    )


def _ledger(
    case: Opened, frozen: Frozen, test: TwinsConfig | CanariesConfig, planned: datetime, given: Given, check: Check
) -> None:
    name, window = name_of(test), Window.of(test.since, test.until)
    ledger = read_committed(frozen.inputs[str(test.ledger)])
    rows = {row.seq: row.ts for row in (ledger.canaries if isinstance(test, CanariesConfig) else ledger.twins)}
    last = max((ts for ts in rows.values() if window.holds(ts)), default=None)
    until, what = planned, "the plan"
    if (stamped := case.stamps.get(str(test.ledger))) is not None:
        until, anchored = stamped
        what = "the ledger's timestamp"
        _hold(anchored, f"{name}: the ledger", given, check)
        check.must(until <= planned + _SKEW, f"{name}: the ledger's timestamp is of {_at(until)}, after the plan")
    if last is not None and (made := parse_time(last)) is not None:
        check.must(made <= until + _SKEW, f"{name}: the ledger commits at {_at(made)}, after {what} ({_at(until)})")
    if isinstance(test, TwinsConfig):
        for number, line in opened_lines(frozen.inputs[test.pairs]):
            seq, created = line.get("seq"), parse_time(line.get("created"))
            committed = parse_time(rows.get(seq)) if isinstance(seq, int) else None
            if created is not None and committed is not None and created + _SKEW < committed:
                check.failures.append(
                    f"{name}: pair {number} was released {_at(created)}, committed to {_at(committed)}"
                )
                break


def _hold(anchored: bool, what: str, given: Given, check: Check) -> None:
    if not anchored:
        check.loose.append(f"{what} has a timestamp of an authority known from nowhere else: give its root with --tsa")


def _questions(
    planned: datetime, attempts: Sequence[Mapping[str, Any]], records: Sequence[Record], check: Check
) -> None:
    begun = [parse_time(entry.get("ts")) for entry in attempts]
    if None in begun:
        check.failures.append("attempts.jsonl: an attempt says no time")
        return
    starts = [time for time in begun if time is not None]
    for number, time in enumerate(starts, 1):
        if time + _SKEW < planned:
            check.failures.append(f"attempt {number} began {_at(time)}, before the plan stood ({_at(planned)})")
            break
    if any(later + _SKEW < earlier for earlier, later in itertools.pairwise(starts)):
        check.failures.append("attempts.jsonl: an attempt began before the one before it")
    for record in records:
        asked = parse_time(record.ts) or datetime.fromtimestamp(0, UTC)
        if asked + _SKEW < planned:
            check.failures.append(f"{record.item[:60]} was asked {_at(asked)}, before the plan stood ({_at(planned)})")
            return
        if record.attempt <= len(starts) and asked + _SKEW < starts[record.attempt - 1]:
            check.failures.append(f"{record.item[:60]} was asked before the attempt that asked it began")
            return
        if record.attempt < len(starts) and asked - _SKEW > starts[record.attempt]:
            check.failures.append(f"{record.item[:60]} was asked in attempt {record.attempt} after the next had begun")
            return


def _at(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
