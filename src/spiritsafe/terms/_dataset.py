"""Every row of a dataset traced to its teacher's terms: as recorded at collection, and as the registry has them now."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritsafe.errors import BadInput
from spiritsafe.exchanges import open_exchanges
from spiritsafe.terms._decide import DISCLAIMER, Decision, combine, decide
from spiritsafe.terms._entries import Status
from spiritsafe.terms._registry import Registry

__all__ = ["DatasetTerms", "RowsOfTeacher", "check_dataset"]


@dataclass(frozen=True, slots=True)
class RowsOfTeacher:
    """Rows with the same teacher, host and recorded terms. `changes`: what the registry says otherwise by now."""

    teacher: str
    host: str | None
    terms: tuple[str, ...]
    rows: int
    decision: Decision
    changes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        facts = {"teacher": self.teacher, "host": self.host, "terms": list(self.terms), "rows": self.rows}
        verdict = {"status": self.decision.status, "reason": self.decision.reason, "changes": list(self.changes)}
        return facts | verdict


@dataclass(frozen=True, slots=True)
class DatasetTerms:
    """The verdict on a dataset: that of its strictest rows."""

    path: str
    rows: int
    groups: tuple[RowsOfTeacher, ...]
    decision: Decision

    @property
    def status(self) -> Status:
        return self.decision.status

    @property
    def permits(self) -> bool:
        return self.decision.permits

    def render(self) -> str:
        """The verdict for people, a line a teacher."""
        lines = [f"{self.path}: {self.rows} rows: {self.status} ({DISCLAIMER})"]
        for group in self.groups:
            host = group.host or "local weights"
            lines.append(
                f"  {group.rows} rows of {group.teacher} at {host}, under {', '.join(group.terms) or 'unknown'}"
            )
            lines.append(f"    {group.decision.reason}")
            lines += [f"    {change}" for change in group.changes]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        facts = {"path": self.path, "rows": self.rows, "status": self.status, "permits": self.permits}
        groups = [g.to_dict() for g in self.groups]
        return facts | {"reason": self.decision.reason, "teachers": groups, "disclaimer": DISCLAIMER}


def check_dataset(path: Path, registry: Registry) -> DatasetTerms:
    """Trace each row of an exchanges file. Recorded terms count as declared: they can only tighten what holds now.

    Raises:
        BadInput: not an exchanges file, or it has no rows.
    """
    counts: Counter[tuple[str, str | None, str, str]] = Counter()
    with open_exchanges(path) as file:
        columns = ["teacher", "teacher_host", "terms_id", "terms_version"]
        for batch in file.iter_batches(columns=columns):
            counts.update(zip(*(batch.column(c).to_pylist() for c in columns), strict=True))
    if not counts:
        raise BadInput(f"{path}: has no rows, so there are no terms to check; collect first")
    groups = tuple(_group(registry, key, rows) for key, rows in sorted(counts.items(), key=str))
    return DatasetTerms(str(path), counts.total(), groups, combine(g.decision for g in groups))


def _group(registry: Registry, key: tuple[str, str | None, str, str], rows: int) -> RowsOfTeacher:
    teacher, host, terms_id, terms_version = key
    ids = [i for i in (terms_id or "").split("+") if i and i != "unknown"]
    versions = (terms_version or "").split("+")
    versions += [""] * (len(ids) - len(versions))
    recorded = dict(zip(ids, versions, strict=False))
    decision = decide(registry, host=host, model=teacher, declared="+".join(ids) or None)
    changes = tuple(
        f"collected under {i}@{version or 'no version'}; the registry now has version {entry.version}"
        for i, version in recorded.items()
        for entry in registry.resolve(i)
        if entry.id == i and entry.version != version
    )
    named = tuple(f"{i}@{version}" if version else i for i, version in recorded.items())
    return RowsOfTeacher(teacher, host, named, rows, decision, changes)
