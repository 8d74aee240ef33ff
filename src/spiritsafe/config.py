"""Strict YAML configs: unknown keys are errors that name the nearest valid one."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from spiritsafe.errors import BadInput

__all__ = ["StrictModel", "load_config", "parse_config", "with_overrides"]


class StrictModel(BaseModel):
    """Base of every config: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=BaseModel)


def load_config(path: Path, model: type[M], overrides: Iterable[str] = ()) -> M:
    """Read a YAML file into `model`, after applying dotted `key=value` overrides.

    Raises:
        BadInput: the file is missing, is not YAML, or a key or value does not fit `model`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a YAML mapping at the top level")
    return parse_config(with_overrides(data, overrides), model, where=str(path))


def with_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with dotted `key.subkey=value` overrides applied; values are YAML.

    Raises:
        BadInput: an override is not of that form or goes through something that is not a mapping.
    """
    changed = copy.deepcopy(dict(data))
    for override in overrides:
        _apply(changed, override)
    return changed


def parse_config(data: Mapping[str, Any], model: type[M], where: str) -> M:
    """Validate `data` as `model`; every fault in one line that begins with `where`.

    Raises:
        BadInput: a key or value does not fit `model`.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise BadInput(f"{where}: " + "; ".join(_explain(fault, model) for fault in error.errors())) from None


def _apply(data: dict[str, Any], override: str) -> None:
    dotted, equals, raw = override.partition("=")
    if not equals or not dotted:
        raise BadInput(f"--set {override}: write it as key.subkey=value")
    *parents, leaf = dotted.split(".")
    node = data
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise BadInput(f"--set {override}: {parent} is not a mapping in this config")
        node = child
    try:
        node[leaf] = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise BadInput(f"--set {override}: the value is not valid YAML") from None


def _explain(fault: Any, model: type[BaseModel]) -> str:
    path = [str(part) for part in fault["loc"]]
    dotted = ".".join(path) or "the config"
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], _keys_at(model, path[:-1]), n=1)
        return f"unknown key {dotted}" + (f"; did you mean {near[0]}?" if near else "; remove it")
    if fault["type"] == "missing":
        return f"{dotted} is missing"
    return f"{dotted}: {fault['msg'].removeprefix('Value error, ')} (got {_short(fault['input'])})"


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        if field is None:
            return []
        inner = [t for t in (field.annotation, *get_args(field.annotation)) if isinstance(t, type)]
        models = [t for t in inner if issubclass(t, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
