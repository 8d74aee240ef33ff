"""What a lineage test wrote into its transcript, read back and checked: it may come from anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spiritsafe import pvalue
from spiritsafe.audit._types import Record
from spiritsafe.audit.tests._answers import answers
from spiritsafe.audit.tests._units import Count
from spiritsafe.errors import BadInput

__all__ = ["Compared", "Counted", "Places", "read_counted"]

_MOST = 1 << 40
_COUNT = ("found", "of", "orders", "choices")


class Places(Count):
    """A count with its p-value."""

    @property
    def log10_p(self) -> float:
        return pvalue.matches(self.found, self.orders, self.choices)


@dataclass(frozen=True, slots=True)
class Compared:
    """One model against the teacher. share: of the teacher's own change in it; None where that is not defined."""

    counts: Mapping[str, Places | None]
    share: float | None


@dataclass(frozen=True, slots=True)
class Counted:
    suspect: Compared
    base: Compared | None
    siblings: Mapping[str, Compared]


def read_counted(records: Sequence[Record], test: str, siblings: Sequence[str], with_base: bool) -> Counted | None:
    """The last record; None if it brought nothing.

    Raises:
        BadInput: it is not what a test of this plan writes.
    """
    if any(r.test == test and dict(r.asked) != {"weights": "teacher"} for r in records):
        raise BadInput(f"{test}: asked otherwise than planned; the transcript is not that of this plan")
    got = answers(records, test, {"weights"}).get("weights")
    if got is None:
        return None
    wanted = {"suspect", "base", "siblings"} if with_base else {"suspect"}
    if set(got) != wanted:
        raise BadInput(f"{test}: what was counted does not fit the plan; the transcript is damaged")
    others = got.get("siblings", {})
    if not isinstance(others, dict) or set(others) != set(siblings):
        raise BadInput(f"{test}: other siblings than the plan's were counted; the transcript is not that of this plan")
    return Counted(
        suspect=_compared(got["suspect"], test, with_base),
        base=_compared(got["base"], test, False) if with_base else None,
        siblings={name: _compared(others[name], test, True) for name in siblings},
    )


def _compared(value: Any, test: str, with_change: bool) -> Compared:
    wanted = {"units", "coordinates", "change"} if with_change else {"units", "coordinates"}
    if not isinstance(value, dict) or set(value) != wanted:
        raise BadInput(f"{test}: what was counted does not fit the plan; the transcript is damaged")
    counts = {name: _places(value[name], test) for name in ("units", "coordinates")}
    change = value.get("change")
    if change is None:
        return Compared(counts, None)
    if not isinstance(change, list) or len(change) != 2 or not all(map(_is_number, change)) or change[1] < 1e-150:
        raise BadInput(f"{test}: change has to be two finite numbers; the transcript is damaged")
    return Compared(counts, max(-1e9, min(1e9, change[0] / change[1])))


def _places(value: Any, test: str) -> Places | None:
    if value is None:
        return None
    if isinstance(value, dict) and set(value) == set(_COUNT):
        found, of, orders, choices = (value[name] for name in _COUNT)
        whole = all(type(n) is int and 0 <= n < _MOST for n in (found, of, orders, choices))
        if whole and found <= of and 0 < orders <= of and choices > 0:
            return Places(found, of, orders, choices)
    raise BadInput(f"{test}: a count that cannot be; the transcript is damaged")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e150
