"""The page on leads shows entries that a plan accepts."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from spiritsafe.audit import _plan as plan

PAGE = Path(__file__).parents[2] / "docs" / "audit" / "leads.md"


def test_every_entry_is_a_test_of_a_plan() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    adapter: TypeAdapter[object] = TypeAdapter(plan.TestConfig)
    kinds = [adapter.validate_python(entry).kind for block in blocks for entry in yaml.safe_load(block)["tests"]]  # type: ignore[attr-defined]
    assert kinds == ["lineage", "equality", "similarity"]
