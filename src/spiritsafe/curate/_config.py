"""The recipe's `curate:` list."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ConfigDict, RootModel, SerializeAsAny, field_validator, model_serializer

from spiritsafe.config import parse_config
from spiritsafe.curate._step import Step
from spiritsafe.curate.steps import STEPS
from spiritsafe.errors import BadInput

__all__ = ["CurateConfig"]

# Not drop_truncated: with a small token limit most completions are cut off, and they train well all the same.
_DEFAULT = ("exact_dedup", "near_dedup", "drop_empty", "drop_refusals", "decontaminate")


class CurateConfig(RootModel[tuple[SerializeAsAny[Step], ...]]):
    """Steps in order: `[exact_dedup, {near_dedup: {threshold: 0.9}}]`."""

    model_config = ConfigDict(frozen=True)
    root: tuple[SerializeAsAny[Step], ...] = tuple(STEPS[name]() for name in _DEFAULT)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.root

    @field_validator("root", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError(f"write the steps as a list, such as [{', '.join(_DEFAULT[:3])}]")
        return tuple(item if isinstance(item, Step) else _step(item) for item in value)

    @model_serializer
    def _plain(self) -> list[Any]:
        dumped = [(step.name, step.model_dump(mode="json")) for step in self.root]
        return [{name: params} if params else name for name, params in dumped]


def _step(item: Any) -> Step:
    name: str
    params: Any
    if isinstance(item, str):
        name, params = item, {}
    elif isinstance(item, dict) and len(item) == 1:
        name, params = next((str(n), {} if p is None else p) for n, p in item.items())
    else:
        raise ValueError(f"{item!r}: write a step as its name, or as {{name: {{parameter: value}}}}")
    if name not in STEPS:
        near = difflib.get_close_matches(name, STEPS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(STEPS)}"
        raise ValueError(f"unknown step {name}; {hint}")
    if not isinstance(params, dict):
        raise ValueError(f"{name}: write its parameters as a mapping, such as {{{name}: {{parameter: value}}}}")
    try:
        return parse_config(params, STEPS[name], where=name)
    except BadInput as error:
        raise ValueError(str(error)) from None
