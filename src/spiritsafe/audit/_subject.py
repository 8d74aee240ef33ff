"""subject.json: who answered, as far as is known, and what was noticed meanwhile. No key, no path of a machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spiritsafe.audit._plan import SubjectConfig
from spiritsafe.audit._probes import Probes
from spiritsafe.audit._suspect import is_address
from spiritsafe.audit._suspect_spend import Journal
from spiritsafe.audit._types import Suspect
from spiritsafe.errors import SpiritsafeError
from spiritsafe.records import TeacherInfo
from spiritsafe.runs import atomic_write

__all__ = ["identity", "write_subject"]


def identity(source: str, subject: SubjectConfig, info: TeacherInfo) -> dict[str, Any]:
    """What makes a suspect this one and no other."""
    if is_address(source):
        return {"address": source.rstrip("/"), "model": subject.model}
    local = Path(source).expanduser()
    return {"weights": local.name if local.exists() else source, "revision": info.revision}


def write_subject(
    path: Path,
    source: str,
    subject: SubjectConfig,
    suspect: Suspect,
    *,
    controls: Mapping[str, Mapping[str, Any]],
    journal: Journal,
    probes: Probes,
    notes: tuple[str, ...] = (),
) -> list[str]:
    """Write it; returns what a reader must know of how the suspect behaved.

    controls: name → what is known of it.  notes: of the run.

    Raises:
        SpiritsafeError: the disk does not take it.
    """
    answers = journal.said("suspect")
    changes = [*_changes(answers), *probes.changes()]
    spent = journal.spent
    facts = {
        "format": "spiritsafe-subject/1",
        "name": subject.name,
        "access": suspect.access,
        "base": subject.base,
        **identity(source, subject, suspect.info),
        "tokenizer_hash": suspect.info.tokenizer_hash,
        "template_hash": suspect.info.template_hash,
        "answers": answers,
        "changes": changes,
        "probes": probes.entries,
        "notes": list(notes),
        "controls": {name: dict(known) for name, known in controls.items()},
        "spent": {"usd": spent.usd, "tokens": spent.tokens, "requests": spent.requests},
    }
    try:
        atomic_write(path, json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=True) + "\n")
    except OSError as error:
        raise SpiritsafeError(f"{path}: cannot be written ({error.strerror}); fix it and run again") from None
    return changes


def _changes(answers: Mapping[str, Mapping[str, int]]) -> list[str]:
    """More than one model name or fingerprint in the answers of one suspect."""
    notes = []
    for kind, called in (("model", "models"), ("fingerprint", "system fingerprints")):
        seen = answers.get(kind, {})
        if len(seen) > 1:
            listed = ", ".join(f"{name} ({count})" for name, count in sorted(seen.items())[:5])
            notes.append(f"its answers name {len(seen)} {called}: {listed}: it may have changed while it was asked")
    return notes
