"""PLAN.run: where an audit writes down what it asked, until the case is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["RunFolder"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run. Nothing here creates anything.

    requests, probes: what an API was charged for, and whether it stayed the same; not part of the case, `subject` has
    what follows from them.
    """

    path: Path

    @classmethod
    def of(cls, plan_file: Path) -> RunFolder:
        """The folder that belongs to PLAN.yaml: PLAN.run beside it."""
        return cls(plan_file.with_suffix(".run"))

    @property
    def transcript(self) -> Path:
        return self.path / "transcripts.jsonl"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def subject(self) -> Path:
        return self.path / "subject.json"

    @property
    def requests(self) -> Path:
        return self.path / "requests.jsonl"

    @property
    def probes(self) -> Path:
        return self.path / "probes.jsonl"

    def control(self, name: str) -> Path:
        """The transcript of one control."""
        return self.path / "controls" / f"{name}.jsonl"
