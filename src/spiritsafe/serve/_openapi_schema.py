"""JSON Schemas, put together from small ones."""

from __future__ import annotations

from typing import Any, Final

__all__ = [
    "ANY",
    "FLAG",
    "TEXT",
    "Schema",
    "forbids",
    "list_of",
    "needs",
    "number",
    "object_of",
    "one_of",
    "or_null",
    "typed",
    "typed_of",
    "whole",
]

Schema = dict[str, Any]

ANY: Final[Schema] = {}
FLAG: Final[Schema] = {"type": "boolean"}
TEXT: Final[Schema] = {"type": "string"}
_BIG = 2**63 - 1


def object_of(required: tuple[str, ...], **properties: Schema) -> Schema:
    """These properties and no others; those that are not required may be null."""
    made = {name: schema if name in required else or_null(schema) for name, schema in properties.items()}
    return {"type": "object", "properties": made, "required": list(required), "additionalProperties": False}


def typed(kind: str, **properties: Schema) -> Schema:
    """An object with that `type`, and all of the properties."""
    return typed_of(kind, *properties, **properties)


def typed_of(kind: str, *required: str, **properties: Schema) -> Schema:
    """An object with that `type`, and some of the properties."""
    return object_of(("type", *required), type={"const": kind}, **properties)


def or_null(schema: Schema) -> Schema:
    if not schema:
        return schema
    if set(schema) <= {"type", "enum"} and "enum" in schema:
        return schema | {"type": [schema["type"], "null"], "enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [*schema.get("anyOf", [schema]), {"type": "null"}]}


def needs(name: str, given: Schema, other: str, value: Schema) -> Schema:
    """Where `name` is as `given`, `other` must be there, as `value`."""
    return {
        "if": {"properties": {name: given}, "required": [name]},
        "then": {"properties": {other: value}, "required": [other]},
    }


def forbids(name: str, given: Schema, other: str) -> Schema:
    """Where `name` is as `given`, `other` must be null or absent."""
    return {
        "if": {"properties": {name: given}, "required": [name]},
        "then": {"properties": {other: {"type": "null"}}},
    }


def list_of(items: Schema, *, least: int = 0, most: int | None = None) -> Schema:
    made: Schema = {"type": "array", "items": items}
    return made | ({"minItems": least} if least else {}) | ({} if most is None else {"maxItems": most})


def whole(least: int, most: int = _BIG) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def number(least: float, most: float, *, above: bool = False) -> Schema:
    return {"type": "number", "exclusiveMinimum" if above else "minimum": least, "maximum": most}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}
