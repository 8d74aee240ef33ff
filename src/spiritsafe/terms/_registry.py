"""The registry: the shipped entries, and on top of them the user's own."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from spiritsafe.config import StrictModel, load_config, parse_config
from spiritsafe.errors import BadInput
from spiritsafe.terms._entries import STRICTNESS, Entry
from spiritsafe.terms._names import Host, ModelMatch, find_models, host_matches

__all__ = ["ENVIRONMENT", "Origin", "Registry"]

ENVIRONMENT = "SPIRITSAFE_TERMS"


class _File(StrictModel):
    version: str = "1"
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an entry stands: None for the shipped registry, else the user's file; and the entry it changed."""

    file: str | None = None
    changed: Entry | None = None

    def note(self, entry: Entry) -> str:
        """What a decision must tell about it; empty for an untouched shipped entry."""
        if self.file is None:
            return ""
        if self.changed is None:
            return f"added by {self.file}"
        verb = "replaces" if entry.replaces else "tightens"
        return f"{self.file} {verb} the entry, which said {self.changed.status}"


@dataclass(frozen=True)
class Registry:
    """Entries by id, in the order of the files. `version` is the shipped registry's."""

    version: str
    entries: tuple[Entry, ...]
    origins: dict[str, Origin]

    @classmethod
    def load(cls, extra: Path | None = None) -> Registry:
        """The shipped registry, then ~/.config/spiritsafe/terms.yaml, the file $SPIRITSAFE_TERMS names, and `extra`.

        A user's entry may add or tighten. One that loosens an entry of the same id needs `replaces: true`.

        Raises:
            BadInput: a named file is missing or malformed, or an entry loosens without saying so.
        """
        registry = shipped()
        for path in _user_files(extra):
            file = load_config(path, _File)
            registry = registry._with(file.entries, str(path))
        return registry

    def get(self, entry_id: str) -> Entry:
        """The entry of this id or alias.

        Raises:
            BadInput: there is none; names the nearest.
        """
        found = self.resolve(entry_id)
        if not found:
            raise BadInput(f"terms: {self.no_such(entry_id)}; `spiritsafe terms list` shows all")
        return found[0]

    def resolve(self, name: str) -> tuple[Entry, ...]:
        """Every entry that answers to this id or alias, the id's own first."""
        wanted = name.strip().lower()
        exact = [e for e in self.entries if e.id == wanted]
        return (*exact, *(e for e in self.entries if wanted in e.aliases and e.id != wanted))

    def no_such(self, name: str) -> str:
        """'the registry has no …', with the nearest id."""
        names = [n for e in self.entries for n in (e.id, *e.aliases)]
        near = difflib.get_close_matches(name.strip().lower(), names, n=1)
        shown = name if len(name) <= 60 else name[:57] + "..."
        return f"the registry has no entry {shown!r}" + (f" (did you mean {near[0]}?)" if near else "")

    def for_host(self, host: Host) -> tuple[tuple[Entry, str], ...]:
        """Entries whose terms apply at a host, each with the pattern that said so."""
        hits = ((e, next((p for p in e.hosts if host_matches(p, host)), None)) for e in self.entries)
        return tuple((entry, pattern) for entry, pattern in hits if pattern is not None)

    def for_model(self, name: str) -> tuple[tuple[Entry, str], ...]:
        """Entries that apply to a model, each with what in the name said so.

        A more specific shipped pattern takes the place of a shorter one it contains (llama-3.1 of llama). A user's
        pattern never does: it adds to what the shipped entries say.
        """
        found = [(e, m) for e in self.entries for m in find_models(e.models, name)]
        specific = [m for e, m in found if m.pattern in self._shipped_patterns(e)]
        kept: dict[str, tuple[Entry, str]] = {}
        for entry, match in found:
            if not any(other.hides(match) for other in specific):
                kept.setdefault(entry.id, (entry, _readable(match)))
        return tuple(kept.values())

    def _shipped_patterns(self, entry: Entry) -> tuple[str, ...]:
        origin = self.origins.get(entry.id, Origin())
        if origin.file is None:
            return entry.models
        return origin.changed.models if origin.changed is not None else ()

    def _with(self, entries: tuple[Entry, ...], file: str) -> Registry:
        merged, origins = {e.id: e for e in self.entries}, dict(self.origins)
        for new in entries:
            old = merged.get(new.id)
            if old is None and new.replaces:
                raise BadInput(f"{file}: {new.id} says `replaces: true`, but {self.no_such(new.id)}")
            if old is None or new.replaces:
                merged[new.id] = new
            elif STRICTNESS.index(new.status) >= STRICTNESS.index(old.status):
                merged[new.id] = _tightened(old, new)
            else:
                raise BadInput(
                    f"{file}: {new.id} is {old.status} in the registry and {new.status} here; "
                    "add `replaces: true` if you mean to loosen it (decisions will say so)"
                )
            before = origins.get(new.id, Origin())
            origins[new.id] = Origin(file, before.changed if before.file is not None else old)
        return Registry(self.version, tuple(merged.values()), origins)


@lru_cache(maxsize=1)
def shipped() -> Registry:
    """The registry in the package."""
    text = files("spiritsafe.terms").joinpath("registry.yaml").read_text(encoding="utf-8")
    data: Any = yaml.safe_load(text)
    file = parse_config(data, _File, where="the shipped registry")
    return Registry(file.version, file.entries, {})


def _user_files(extra: Path | None) -> Iterator[Path]:
    config_home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    own = Path(config_home).expanduser() / "spiritsafe" / "terms.yaml"
    if own.is_file():
        yield own
    if named := os.environ.get(ENVIRONMENT):
        yield Path(named).expanduser()
    if extra is not None:
        yield extra


def _tightened(old: Entry, new: Entry) -> Entry:
    """`new`, and everything `old` applied to and asked for."""

    def union(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys((*a, *b)))

    return new.model_copy(
        update={
            "conditions": union(old.conditions, new.conditions),
            "hosts": union(old.hosts, new.hosts),
            "models": union(old.models, new.models),
            "aliases": union(old.aliases, new.aliases),
        }
    )


def _readable(match: ModelMatch) -> str:
    return match.text.strip("-")
