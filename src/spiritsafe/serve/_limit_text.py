"""Limits as people type and read them: RULE=VALUE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import yaml

from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput
from spiritsafe.serve._config import LimitSet

__all__ = ["limit_lines", "typed_limits"]


def typed_limits(current: LimitSet, typed: Iterable[str], where: str) -> LimitSet:
    """`current` with the limits that were typed. where: begins the errors.

    The value `none` sets no limit, whatever the tier's is; `tier` takes the own limit away, so that the tier's holds.

    Raises:
        BadInput: no such rule (names the nearest), or no such value.
    """
    limits: dict[str, Any] = current.model_dump(exclude_unset=True)
    for item in typed:
        rule, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not rule:
            raise BadInput(f"{where} {item[:80]}: write it as RULE=VALUE, e.g. usd_per_day=5")
        if value in ("none", "tier") and rule in LimitSet.model_fields:
            limits.pop(rule, None)
            if value == "none":
                limits[rule] = LimitSet.model_fields[rule].default
            continue
        try:
            limits[rule] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise BadInput(f"{where} {item[:80]}: the value is not valid YAML") from None
    return parse_config(limits, LimitSet, where=where)


def limit_lines(limits: Mapping[str, Any]) -> list[str]:
    """Limits as JSON has them, as `typed_limits` reads them."""
    return [f"{rule}={'none' if value is None else orjson.dumps(value).decode()}" for rule, value in limits.items()]
