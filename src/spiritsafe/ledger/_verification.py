"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Verification"]


@dataclass(frozen=True, slots=True)
class Verification:
    """ok: no problem was found.  rows: replies and events.  head: the last row, (seq, hash); (0, zeros) if empty.

    problems: the first twenty; `problem_count` counts all.  first_bad: the number of the first bad row.
    notes: what this verification could not show.
    signer: "anchored" (checkpoints are signed by a key you gave), "unanchored" (by keys found beside them), "none".
    personal_checked, personal_gone: fields whose commitments held; fields of which only the commitment is left.
    totals: "match", "differ", or "absent" (files have none).
    """

    ok: bool
    rows: int
    replies: int
    events: int
    first: int
    head: tuple[int, str]
    problems: tuple[str, ...]
    problem_count: int
    first_bad: int | None
    notes: tuple[str, ...]
    checkpoints: int
    last_checkpoint: int
    signer: Literal["anchored", "unanchored", "none"]
    signers: tuple[str, ...]
    personal_checked: int
    personal_gone: int
    totals: Literal["match", "differ", "absent"]

    def to_dict(self) -> dict[str, Any]:
        """As `ledger verify --json` prints it."""
        return {
            "ok": self.ok,
            "rows": self.rows,
            "replies": self.replies,
            "events": self.events,
            "first": self.first,
            "head": {"seq": self.head[0], "hash": self.head[1]},
            "problems": list(self.problems),
            "problem_count": self.problem_count,
            "first_bad": self.first_bad,
            "notes": list(self.notes),
            "checkpoints": {
                "count": self.checkpoints,
                "last": self.last_checkpoint,
                "signer": self.signer,
                "public_keys": list(self.signers),
            },
            "personal": {"checked": self.personal_checked, "gone": self.personal_gone},
            "totals": self.totals,
        }

    def render(self) -> str:
        """For people."""
        lines = [f"{self.rows:,} rows ({self.replies:,} replies, {self.events:,} events)"]
        if self.rows:
            lines.append(f"last row  {self.head[0]}:{self.head[1]}")
        signed = "" if self.signer == "none" else f", last over row {self.last_checkpoint}, signer {self.signer}"
        lines.append(f"checkpoints  {self.checkpoints}{signed}")
        lines += [f"  signed by {key}" for key in self.signers]
        lines.append(f"personal fields  {self.personal_checked:,} hold, {self.personal_gone:,} deleted or left out")
        lines.append(f"totals  {self.totals}")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"BAD: {problem}" for problem in self.problems]
        if self.problem_count > len(self.problems):
            lines.append(f"BAD: and {self.problem_count - len(self.problems):,} more")
        lines.append("the chain is whole" if self.ok else f"the chain is NOT whole ({self.problem_count:,} problems)")
        return "\n".join(lines)
