"""The decision: what a host's terms, a model's licence and a declaration say together. The strictest wins.

Each of them can only add entries to the decision, never take one away. A declaration fills one gap: where no pattern
knows the model, the licence that the user declares is taken for the model's, because nothing is there that it loosens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from spiritsafe.terms._entries import Condition, Entry, Status, stricter
from spiritsafe.terms._names import parse_host
from spiritsafe.terms._registry import Origin, Registry

__all__ = ["DISCLAIMER", "Applied", "Decision", "combine", "decide"]

DISCLAIMER = "not legal advice"

_MEANING: dict[Status, str] = {
    "allowed": "outputs may train a model",
    "allowed_with_conditions": "outputs may train a model, under conditions",
    "unknown": "nobody has recorded whether outputs may train a model",
    "forbidden_competing": "outputs may not train a competing model, and whether yours competes is your judgement",
    "forbidden": "outputs may not train other models",
}


@dataclass(frozen=True, slots=True)
class Applied:
    """One thing that bears on a decision: a registry entry and why it applies, or a gap (`entry` is None)."""

    status: Status
    why: str
    entry: Entry | None = None
    id: str = "unknown"
    origin: str = ""

    @property
    def version(self) -> str:
        return self.entry.version if self.entry is not None else ""

    def to_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"id": self.id, "version": self.version, "status": self.status, "why": self.why}
        if self.entry is not None:
            checked = self.entry.checked.isoformat() if self.entry.checked else None
            facts |= {"name": self.entry.name, "source": self.entry.source, "checked": checked}
        return facts | ({"origin": self.origin} if self.origin else {})


@dataclass(frozen=True, slots=True)
class Decision:
    """What the registry says, `reason` in one line. Says nothing about what a court would."""

    status: Status
    entries: tuple[Applied, ...]
    reason: str
    host: str | None
    model: str | None
    declared: str | None = None
    licence_hint: str | None = None

    @property
    def permits(self) -> bool:
        return self.status in ("allowed", "allowed_with_conditions")

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return tuple(dict.fromkeys(c for a in self.entries if a.entry is not None for c in a.entry.conditions))

    @property
    def terms_id(self) -> str:
        """Ids for a dataset's rows, joined by `+`; an unresolved declaration keeps its own words, so it is not lost."""
        return "+".join(dict.fromkeys(a.id for a in self.entries if a.id != "unknown")) or "unknown"

    @property
    def terms_version(self) -> str:
        """Versions, in the order of `terms_id`."""
        versions = {a.id: a.version for a in reversed(self.entries) if a.id != "unknown"}
        return "+".join(versions[i] for i in dict.fromkeys(a.id for a in self.entries if a.id != "unknown"))

    def render(self) -> str:
        """The decision for people, several lines."""
        lines = [self.reason]
        lines += [f"  {a.id}{'@' + a.version if a.version else ''}: {a.status}: {a.why}" for a in self.entries]
        lines += [f"  condition: {describe(c)}" for c in self.conditions]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "permits": self.permits,
            "reason": self.reason,
            "terms_id": self.terms_id,
            "terms_version": self.terms_version,
            "entries": [a.to_dict() for a in self.entries],
            "conditions": [c.model_dump(mode="json", exclude_none=True) for c in self.conditions],
            "host": self.host,
            "model": self.model,
            "declared": self.declared,
            "licence_hint": self.licence_hint,
            "disclaimer": DISCLAIMER,
        }


def decide(
    registry: Registry, *, host: str | None, model: str | None, declared: str | None, licence_hint: str | None = None
) -> Decision:
    """May outputs of `model`, served at `host`, train a model?

    host: a host name or URL; None for local weights. model: its name or path. declared: what the user says applies, an
    id or several joined by `+`. licence_hint: the licence that the weights' own metadata states.
    Total: whatever the arguments are, there is a decision, and what cannot be read counts as unknown.
    """
    by_host = _from_host(registry, host)
    by_model = [_applied(registry, e, f"the model's name says {seen}") for e, seen in registry.for_model(model or "")]
    by_hint = _from_hint(registry, licence_hint, known=bool(by_model))
    by_declaration = [a for d in _split(declared) for a in _named(registry, d, "declared")]
    entries = [*by_host, *by_model, *by_hint, *by_declaration]
    licensed = bool(by_model) or any(
        a.entry is not None and a.entry.kind == "licence" for a in (*by_hint, *by_declaration)
    )
    if not licensed:
        subject = f"no entry knows the model {_short(model)}" if model else "the model has no name"
        entries.append(Applied("unknown", f"{subject}; declare its licence as teacher.terms, if you know it"))
    return _decision(entries, host=host, model=model, declared=declared, licence_hint=licence_hint)


def combine(decisions: Iterable[Decision]) -> Decision:
    """One decision for data that comes under all of `decisions`."""
    parts = list(decisions)
    entries = tuple(dict.fromkeys(a for d in parts for a in d.entries))
    status = stricter(*(d.status for d in parts))
    strictest = next(d for d in parts if d.status == status)
    return Decision(
        strictest.status, entries, strictest.reason, strictest.host, strictest.model, strictest.declared, None
    )


def describe(condition: Condition) -> str:
    """A condition as a sentence for people."""
    match condition.action:
        case "name_prefix":
            text = f"the student's name must begin with “{condition.value}”"
        case "notice":
            text = f"put into {condition.file}: {condition.text}"
        case "badge":
            text = f"display “{condition.text}”"
        case "flow_down":
            text = condition.what + (f" ({condition.url})" if condition.url else "")
        case "acceptable_use":
            text = f"keep to the acceptable use policy: {condition.url}"
        case "non_commercial":
            text = "non-commercial use only"
        case "scale_limit":
            text = condition.what
    return f"{text}: {condition.when}" if condition.when else text


def _decision(entries: list[Applied], **asked: str | None) -> Decision:
    kept = tuple(dict.fromkeys(entries))
    status = stricter(*(a.status for a in kept))
    decisive = [a for a in kept if a.status == status]
    because = "; ".join(
        (f"{a.entry.name} [{a.id}], because {a.why}" if a.entry is not None else a.why) for a in decisive
    )
    changed = "; ".join(a.origin for a in kept if a.origin)
    reason = f"{status}: {_MEANING[status]}: {because}{'; note: ' + changed if changed else ''} ({DISCLAIMER})"
    return Decision(status, kept, reason, **asked)


def _from_host(registry: Registry, host: str | None) -> list[Applied]:
    parsed = parse_host(host)
    if parsed.kind == "malformed":
        return [Applied("unknown", f"the host {_short(host)} cannot be read as a host name")]
    found = [_applied(registry, e, f"the host {parsed.name} is {p}") for e, p in registry.for_host(parsed)]
    if not found and parsed.kind == "public":
        return [Applied("unknown", f"no entry knows the terms of the host {parsed.name}")]
    return found


def _from_hint(registry: Registry, hint: str | None, *, known: bool) -> list[Applied]:
    # "other" is Hugging Face's word for a licence off its list: it adds nothing to a name that we know.
    if hint is None or not hint.strip() or (known and hint.strip().lower() == "other"):
        return []
    return _named(registry, hint, "the weights' metadata says")


def _named(registry: Registry, name: str, how: str) -> list[Applied]:
    found = [_applied(registry, e, f"{how} {name}") for e in registry.resolve(name)]
    return found or [Applied("unknown", f"{how} {_short(name)}, but {registry.no_such(name)}", id=_identifier(name))]


def _applied(registry: Registry, entry: Entry, why: str) -> Applied:
    return Applied(entry.status, why, entry, entry.id, registry.origins.get(entry.id, Origin()).note(entry))


def _split(declared: str | None) -> list[str]:
    return [part.strip() for part in (declared or "").split("+") if part.strip()]


def _identifier(name: str) -> str:
    return "-".join(name.replace("+", " ").replace("@", " ").lower().split())[:80] or "unreadable"


def _short(text: str | None) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."
