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
    except (FileNotFoundError, IsADirectoryError) as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else "a folder"
        raise BadInput(f"{path}: {what}; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        data = yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        said = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise BadInput(f"{path}: not valid YAML: {said}") from None
    except RecursionError:
        raise BadInput(f"{path}: not valid YAML: nested too deeply") from None
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
        faults = error.errors()
        inner = [fault["loc"] for fault in faults]
        # a list whose items are all wrong is called too short as well
        faults = [
            fault
            for fault in faults
            if fault["type"] != "too_short" or not any(loc[:-1][: len(fault["loc"])] == fault["loc"] for loc in inner)
        ]
        raise BadInput(f"{where}: " + "; ".join(_explain(fault, model) for fault in faults)) from None


class _Loader(yaml.SafeLoader):
    """YAML says that a key may stand in a mapping once; PyYAML takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


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
    context = fault.get("ctx", {})
    if fault["type"] == "extra_forbidden":
        return f"unknown key {dotted}{_meant(path[-1], _keys_at(model, path[:-1])) or '; remove it'}"
    if fault["type"] == "missing":
        return f"{dotted} is missing"
    if fault["type"] == "union_tag_not_found":
        return f"{dotted}.{context['discriminator'].strip(chr(39))} is missing"
    if fault["type"] == "union_tag_invalid":
        tags = context["expected_tags"].replace("'", "")
        near = _meant(context["tag"], tags.split(", "))
        return f"{dotted}.{context['discriminator'].strip(chr(39))}: {context['tag']!r} is none of {tags}{near}"
    return f"{dotted}: {fault['msg'].removeprefix('Value error, ')} (got {_short(fault['input'])})"


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Keys that may stand at `path`, through lists, mappings and unions told apart by a key such as `kind`."""
    models = [model]
    for part in path:
        named = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if named:
            models = [m for annotation in named for m in _models_in(annotation)]
        elif tagged := [m for m in models if part in _tags(m)]:
            models = tagged
    return [key for m in models for key in m.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in get_args(annotation) for m in _models_in(inner)]


def _tags(model: type[BaseModel]) -> set[Any]:
    return {tag for field in model.model_fields.values() for tag in get_args(field.annotation) if isinstance(tag, str)}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
