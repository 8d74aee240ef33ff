"""Limits as people type them: RULE=VALUE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput
from spiritsafe.serve._config import LimitSet

__all__ = ["typed_limits"]


def typed_limits(current: LimitSet, typed: Iterable[str], where: str) -> LimitSet:
    """`current` with the limits that were typed; the value `none` takes one away. where: begins the errors.

    Raises:
        BadInput: no such rule (names the nearest), or no such value.
    """
    limits: dict[str, Any] = current.model_dump(exclude_defaults=True)
    for item in typed:
        rule, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not rule:
            raise BadInput(f"{where} {item[:80]}: write it as RULE=VALUE, e.g. usd_per_day=5")
        if value == "none" and rule in LimitSet.model_fields:
            limits.pop(rule, None)
            continue
        try:
            limits[rule] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise BadInput(f"{where} {item[:80]}: the value is not valid YAML") from None
    return parse_config(limits, LimitSet, where=where)
