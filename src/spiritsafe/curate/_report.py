"""What curation kept and dropped, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["CurationReport", "Example", "StepReport"]

EXAMPLES = 5
_SNIPPET = 200


@dataclass(frozen=True, slots=True)
class Example:
    """One dropped row: why, and the beginning of its texts."""

    id: str
    why: str
    prompt: str
    completion: str

    @classmethod
    def of(cls, row_id: str, why: str, prompt: str, completion: str) -> Example:
        return cls(row_id, why, _snippet(prompt), _snippet(completion))


@dataclass(slots=True)
class StepReport:
    """One step: how many rows reached it, how many it dropped, how long it took in all."""

    name: str
    params: dict[str, Any]
    seen: int = 0
    dropped: int = 0
    seconds: float = 0.0
    examples: list[Example] = field(default_factory=list)

    def drop(self, example: Example) -> None:
        self.dropped += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)


@dataclass(frozen=True, slots=True)
class CurationReport:
    """kept = kept_train + kept_holdout rows of `rows`. Steps in order; a name used twice gets #2."""

    rows: int
    kept_train: int
    kept_holdout: int
    steps: tuple[StepReport, ...]

    @property
    def kept(self) -> int:
        return self.kept_train + self.kept_holdout

    @property
    def dropped(self) -> dict[str, int]:
        return {step.name: step.dropped for step in self.steps if step.dropped}

    def to_dict(self) -> dict[str, Any]:
        """The figures, for manifest and metrics."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "kept_train": self.kept_train,
            "kept_holdout": self.kept_holdout,
            "dropped": self.dropped,
        }

    def details(self) -> dict[str, Any]:
        """Everything, for curation.json: the reasons with examples, the steps with parameters and seconds."""
        dropped = {
            step.name: {"count": step.dropped, "examples": [asdict(e) for e in step.examples]}
            for step in self.steps
            if step.dropped
        }
        steps = [
            {"name": s.name, "params": s.params, "seen": s.seen, "dropped": s.dropped, "seconds": round(s.seconds, 4)}
            for s in self.steps
        ]
        return {"schema": "curation/1"} | self.to_dict() | {"dropped": dropped, "steps": steps}


def _snippet(text: str) -> str:
    return text if len(text) <= _SNIPPET else text[: _SNIPPET - 1] + "…"
