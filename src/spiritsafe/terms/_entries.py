"""What the registry holds: entries, their conditions, and how strict a status is."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from spiritsafe.config import StrictModel
from spiritsafe.terms._names import host_pattern, model_pattern

__all__ = ["STRICTNESS", "Condition", "Entry", "Status", "stricter"]

Status = Literal["allowed", "allowed_with_conditions", "unknown", "forbidden_competing", "forbidden"]

# From mild to strict. `unknown` refuses like the forbidding ones, but a known prohibition says more than not knowing.
STRICTNESS: tuple[Status, ...] = ("allowed", "allowed_with_conditions", "unknown", "forbidden_competing", "forbidden")


def stricter(*statuses: Status) -> Status:
    """The strictest of `statuses`; `allowed` if there are none (the join of a total order)."""
    return max(statuses, key=STRICTNESS.index, default="allowed")


class _Condition(StrictModel):
    when: str | None = None  # the circumstance that triggers it, in words, where it does not always apply


class NamePrefix(_Condition):
    """The student's name must begin with `value`."""

    action: Literal["name_prefix"]
    value: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


class Notice(_Condition):
    """A text that must travel with the student, in `file`."""

    action: Literal["notice"]
    text: str = Field(min_length=1)
    file: str = Field(default="NOTICE", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


class Badge(_Condition):
    """A text to show where the student is presented."""

    action: Literal["badge"]
    text: str = Field(min_length=1)


class FlowDown(_Condition):
    """Terms that whoever receives the student must be bound to as well."""

    action: Literal["flow_down"]
    what: str = Field(min_length=1)
    url: str | None = None


class AcceptableUse(_Condition):
    action: Literal["acceptable_use"]
    url: str


class NonCommercial(_Condition):
    action: Literal["non_commercial"]


class ScaleLimit(_Condition):
    """Above this size the licence asks for something else."""

    action: Literal["scale_limit"]
    what: str = Field(min_length=1)


Condition = Annotated[
    NamePrefix | Notice | Badge | FlowDown | AcceptableUse | NonCommercial | ScaleLimit, Field(discriminator="action")
]


class Entry(StrictModel):
    """One provider's terms or one licence: may its outputs train a model?

    hosts: domains a provider answers at; a domain covers its subdomains, `*` stands for labels in between.
    models: names the entry applies to, see `_names.model_pattern`. `aliases`: other ids people declare it by.
    checked: the day someone read the source; None if nobody has yet. `card_licence`: its id on a Hugging Face card.
    replaces: in a user's file only: take the place of the shipped entry of this id, even if that loosens it.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    kind: Literal["provider", "licence"]
    name: str = Field(min_length=1)
    version: str = Field(pattern=r"^[^+\s@][^+@\n]*$")
    status: Status
    conditions: tuple[Condition, ...] = ()
    source: str = Field(min_length=1)
    checked: dt.date | None = None
    note: str = ""
    hosts: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    card_licence: str | None = None
    replaces: bool = False

    @field_validator("version", mode="before")
    @classmethod
    def _dates_are_versions_too(cls, value: object) -> object:
        return value.isoformat() if isinstance(value, dt.date) else value

    @field_validator("id")
    @classmethod
    def _unknown_is_a_status(cls, value: str) -> str:
        if value == "unknown":
            raise ValueError("'unknown' is a status, not an id; choose another")
        return value

    @field_validator("hosts")
    @classmethod
    def _hosts_compile(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            host_pattern(host)
        return hosts

    @field_validator("models")
    @classmethod
    def _models_compile(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        for model in models:
            model_pattern(model)
        return models

    @field_validator("aliases")
    @classmethod
    def _aliases_are_ids(cls, aliases: tuple[str, ...]) -> tuple[str, ...]:
        for alias in aliases:
            if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", alias):
                raise ValueError(f"alias {alias!r}: use lower-case letters, digits, '.', '_' and '-'")
        return aliases

    @model_validator(mode="after")
    def _status_fits_conditions(self) -> Entry:
        binding = [c.action for c in self.conditions if c.action != "notice"]
        if self.status == "allowed" and binding:
            raise ValueError(f"{self.id}: has the condition {binding[0]}, so its status is allowed_with_conditions")
        if self.status == "allowed_with_conditions" and not self.conditions:
            raise ValueError(f"{self.id}: allowed_with_conditions needs at least one condition")
        if self.kind == "licence" and self.hosts:
            raise ValueError(f"{self.id}: hosts belong to a provider; a licence has models")
        return self
