"""How a request's fields are checked: small checks, put together into the tables of `_ask`.

A check gets the request and a value; it may count the value, and raises `FieldError`. What it returns, if not None,
takes the value's place: a whole number written as 5.0, which JSON Schema calls an integer, goes on as 5.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from spiritsafe.wire._ask_types import Ask, FieldError
from spiritsafe.wire._refused import REFUSED

__all__ = [
    "Check",
    "as_whole",
    "bad",
    "by_type",
    "check_fields",
    "counted",
    "every",
    "fields",
    "flag",
    "free",
    "listed",
    "make_whole",
    "number",
    "one_of",
    "said",
    "text",
    "unsupported",
    "whole",
]

Check = Callable[[Ask, Any], int | None]

_LONGEST_NAME = 64  # of a field we quote or look for a near miss of


def bad(expected: str, value: Any, path: str = "") -> NoReturn:
    raise FieldError(f"must be {expected}; got {_short(value)}", path)


def unsupported(why: str, path: str = "") -> NoReturn:
    raise FieldError(why, path, code="unsupported_parameter")


def check_fields(ask: Ask, value: Any, checks: Mapping[str, Check]) -> None:
    """Check an object's fields. Null counts as absent.

    Raises:
        FieldError: not an object, a field nobody knows, a field that is refused, or a check that fails.
    """
    if type(value) is not dict:
        bad("an object", value)
    key = ""
    try:
        for key, item in value.items():
            check = checks.get(key)
            if check is None:
                _unknown(ask, key, item, checks)
            elif item is not None and (exact := check(ask, item)) is not None:
                value[key] = exact
    except FieldError as error:
        raise error.within(_quoted(key)) from None


def _unknown(ask: Ask, key: str, value: Any, known: Collection[str]) -> None:
    """Let a field pass that has no check, if it is neutral or allowed; what is allowed is counted as prompt."""
    if (refusal := REFUSED.get(key)) is not None:
        neutral, why = refusal
        if value is not None and not any(
            isinstance(value, bool) == isinstance(n, bool) and value == n for n in neutral
        ):
            unsupported(f"is refused: {why}; leave it out")
    elif key in ask.allowed:
        ask.add_json(value)
    else:
        near = difflib.get_close_matches(key[:_LONGEST_NAME], known, n=1)
        hint = f"did you mean {near[0]}?" if near else "leave it out"
        raise FieldError(f"is not known here; {hint}", before="the field ", code="unknown_parameter")


def free(_: Ask, __: Any) -> None:
    """What another check reads, or what is counted whole."""


def flag(_: Ask, value: Any) -> None:
    if type(value) is not bool:
        bad("true or false", value)


def whole(least: int, most: int | None = None) -> Callable[[Ask, Any], int]:
    what = f"a whole number, at least {least}" if most is None else f"a whole number from {least} to {most}"
    top = 2**63 - 1 if most is None else most

    def check(_: Ask, value: Any) -> int:
        exact = as_whole(value)
        if exact is None or not least <= exact <= top:
            bad(what, value)
        return exact

    return check


def as_whole(value: Any) -> int | None:
    """A JSON number without a fraction as an int; None for anything else."""
    if type(value) is int:
        return value
    # a float at the edges of 64 bits or beyond may have been written as an integer that is out of range
    if type(value) is float and -(2.0**63) < value < 2.0**64 and value.is_integer():
        return int(value)
    return None


def make_whole(values: list[Any]) -> bool:
    """Turn numbers without a fraction into ints, in place; True if all are ints then."""
    if not all(type(item) is int for item in values):
        values[:] = [item if (exact := as_whole(item)) is None else exact for item in values]
    return all(type(item) is int for item in values)


def number(least: float, most: float, *, above: bool = False) -> Check:
    """above: `least` itself is out of range."""
    what = f"a number above {least:g}, up to {most:g}" if above else f"a number from {least:g} to {most:g}"

    def check(_: Ask, value: Any) -> None:
        if (type(value) is not float and type(value) is not int) or not least <= value <= most:
            bad(what, value)
        if above and value == least:
            bad(what, value)

    return check


def text(longest: int | None = None) -> Check:
    """A string that never becomes part of a prompt, or is counted with what it is part of."""
    what = "a string" if longest is None else f"a string of up to {longest} characters"

    def check(_: Ask, value: Any) -> None:
        if type(value) is not str or (longest is not None and len(value) > longest):
            bad(what, value)

    return check


def one_of(*values: str) -> Check:
    what = "one of " + ", ".join(values)

    def check(_: Ask, value: Any) -> None:
        if type(value) is not str or value not in values:
            bad(what, value)

    return check


def listed(kind: type, what: str, *, most: int, single: bool = False) -> Check:
    """A list of up to `most` values of one type. single: one such value alone will do."""
    right = make_whole if kind is int else lambda value: all(type(item) is kind for item in value)

    def check(_: Ask, value: Any) -> None:
        if single and type(value) is kind:
            return
        if type(value) is not list or len(value) > most or not right(value):
            bad(f"a list of up to {most} {what}", value)

    return check


def said(role: str) -> Check:
    """A text that a template may write, by `role`."""

    def check(ask: Ask, value: Any) -> None:
        if type(value) is not str:
            bad("a string", value)
        ask.add_text(role, value)

    return check


def fields(checks: Mapping[str, Check], *needed: str) -> Check:
    """An object of known fields, `needed` among them."""

    def check(ask: Ask, value: Any) -> None:
        check_fields(ask, value, checks)
        for name in needed:
            if value.get(name) is None:
                raise FieldError("is missing", name)

    return check


def counted(check: Check) -> Check:
    """The same, of a value that templates may write as JSON."""

    def also_count(ask: Ask, value: Any) -> int | None:
        exact = check(ask, value)
        ask.add_json(value)
        return exact

    return also_count


def by_type(kinds: Mapping[str, Check], refused: str) -> Check:
    """An object that is checked by its `type`. refused: why the types not listed are."""

    def check(ask: Ask, value: Any) -> None:
        if type(value) is not dict:
            bad("an object", value)
        kind = value.get("type")
        chosen = kinds.get(kind) if type(kind) is str else None
        if chosen is None:
            unsupported(f"may be {', '.join(kinds)}, not {_short(kind)}: {refused}", "type")
        chosen(ask, value)

    return check


def every(check: Check, *, pieces: int = 1) -> Check:
    """A list, each item checked. pieces: how many each counts for, of what a template may wrap."""

    def check_all(ask: Ask, value: Any) -> None:
        if type(value) is not list:
            bad("a list", value)
        ask.pieces += pieces * len(value)
        for index, item in enumerate(value):
            try:
                check(ask, item)
            except FieldError as error:
                raise error.within(f"[{index}]") from None

    return check_all


def _short(value: Any) -> str:
    """A value on one line, cut to 60 characters."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    shown = "null" if value is None else repr(value[:80] if isinstance(value, str) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _quoted(key: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in key[:_LONGEST_NAME])
    return shown if len(key) <= _LONGEST_NAME else shown + "…"
