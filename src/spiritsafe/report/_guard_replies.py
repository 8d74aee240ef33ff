"""What ledger rows say of the replies, counted one by one."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Latency", "Replies", "Seen"]

_NOTES = 200  # distinct notes that are told apart


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from a request's arrival to its last byte; None without such replies."""

    count: int
    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Replies:
    """What the rows read say of the replies of the window.

    count: how many; `complete` if these are all.  statuses: count by status.  whole, streamed: of those answered.
    marked: with a watermark key.  logprobs: with log-probabilities asked for.  twins: released as one of a pair.
    notes: what the output policy did, count by note.
    """

    count: int
    complete: bool
    statuses: dict[str, int]
    whole: Latency
    streamed: Latency
    marked: int
    logprobs: int
    twins: int
    notes: dict[str, int]


@dataclass(slots=True)
class Seen:
    """Running figures of the replies of the window."""

    statuses: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    whole: array[float] = field(default_factory=lambda: array("d"))
    streamed: array[float] = field(default_factory=lambda: array("d"))
    marked: int = 0
    logprobs: int = 0
    twins: int = 0

    def add(self, payload: Mapping[str, Any]) -> None:
        """Count the payload of a reply's row.

        Raises:
            TypeError, ValueError: it was changed into something that is none.
        """
        self.statuses[str(payload["status"])] += 1
        if payload["status"] in ("ok", "length_cut"):
            (self.streamed if payload["stream"] else self.whole).append(payload["latency_ms"])
        self.marked += payload["watermark_key_id"] is not None
        self.logprobs += payload["logprobs"] is not None
        self.twins += payload["twin_commit"] is not None
        if payload["policy"]:
            for note in str(payload["policy"]).split(","):
                self.notes[note if note in self.notes or len(self.notes) < _NOTES else "others"] += 1

    def replies(self, *, complete: bool) -> Replies:
        """The figures so far. complete: no reply of the window was left out."""
        return Replies(
            count=self.statuses.total(),
            complete=complete,
            statuses=dict(self.statuses.most_common()),
            whole=_latency(self.whole),
            streamed=_latency(self.streamed),
            marked=self.marked,
            logprobs=self.logprobs,
            twins=self.twins,
            notes=dict(self.notes.most_common()),
        )


def _latency(values: array[float]) -> Latency:
    ordered = sorted(values)
    last = len(ordered) - 1

    def at(share: float) -> float | None:
        return ordered[min(last, int(share * len(ordered)))] if ordered else None

    return Latency(len(ordered), at(0.5), at(0.9), at(0.99))
