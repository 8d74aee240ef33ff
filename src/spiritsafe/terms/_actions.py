"""Conditions become actions: what the student must be called, carry and display."""

from __future__ import annotations

from dataclasses import dataclass

from spiritsafe.errors import Refused
from spiritsafe.terms._decide import DISCLAIMER, Decision, describe

__all__ = ["Actions", "conditions_to_actions"]


@dataclass(frozen=True, slots=True)
class Actions:
    """What to do when a student leaves.

    student_name: the name it must have; the given one where nothing is asked. files: name → content, for its folder.
    badges: texts for its card. notes: every duty in words. flow_down: the notes that bind its recipients.
    licence: the id for its card, where the teacher's licence leaves one choice.
    """

    student_name: str
    renamed: bool
    files: dict[str, str]
    badges: tuple[str, ...]
    flow_down: tuple[str, ...]
    notes: tuple[str, ...]
    licence: str | None


def conditions_to_actions(decision: Decision, student_name: str) -> Actions:
    """Turn a decision's conditions into actions for a student of this name.

    Raises:
        Refused: two licences ask for names that exclude each other.
    """
    name, notices, badges, flow_down, notes = student_name, dict[str, list[str]](), [], [], []
    for condition in decision.conditions:
        notes.append(describe(condition))
        match condition.action:
            case "name_prefix":
                name = _with_prefix(name, condition.value)
            case "notice":
                notices.setdefault(condition.file, []).append(condition.text)
            case "badge":
                badges.append(condition.text)
            case "flow_down":
                flow_down.append(describe(condition))
    for condition in decision.conditions:
        if condition.action == "name_prefix" and not name.startswith(condition.value):
            raise Refused(
                f"no name satisfies every licence: one asks for {condition.value!r}, another made it {name!r}"
            )
    files = {file: "\n\n".join(texts) + "\n" for file, texts in notices.items()}
    if notes:
        files["TERMS.md"] = _terms_file(decision, notes)
    licences = {a.entry.card_licence for a in decision.entries if a.entry is not None}
    licence = licences.pop() if decision.permits and len(licences) == 1 else None
    return Actions(name, name != student_name, files, tuple(badges), tuple(flow_down), tuple(notes), licence)


def _with_prefix(name: str, prefix: str) -> str:
    """`name` beginning with `prefix`: llama-mini → Llama-mini, mini → Llama-mini."""
    if name.startswith(prefix):
        return name
    if name.lower().startswith(prefix.lower()):
        return prefix + name[len(prefix) :]
    return f"{prefix}-{name}"


def _terms_file(decision: Decision, notes: list[str]) -> str:
    lines = ["# Terms this model comes under", "", f"What a registry of terms recorded; {DISCLAIMER}.", ""]
    named = [entry for entry in (applied.entry for applied in decision.entries) if entry is not None]
    lines += [f"- {entry.name}, version {entry.version}: {entry.source}" for entry in named]
    return "\n".join([*lines, "", "What they ask for:", "", *(f"- {note}" for note in notes)]) + "\n"
