"""Whatever a file of a case says, in JSON that fits together: no traceback, and never a stronger finding."""

from __future__ import annotations

import json
import random
from typing import Any

import case_kit as kit
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spiritsafe.ledger import canonical_json

ODD = [None, True, -1, 0, 1, 10**30, 1e308, -0.5, "", "x", "\u0000", "2026-01-01", "00" * 32, [], {}, [[]], {"a": 1}]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[kit.Made]:
    coins = kit.coins(tmp_path_factory.mktemp("coins"), signed=False, pairs=12, canaries=2)
    marks = kit.marks(tmp_path_factory.mktemp("marks"), signed=False, texts=3, tokens=20)
    return [coins, marks]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in places(one, (*at, key)))]


def altered(value: Any, draws: random.Random) -> Any:
    """One value somewhere in it replaced, taken out, or doubled."""
    *parents, last = (None, *draws.choice(places(value)))
    at = value
    for parent in parents[1:]:
        at = at[parent]
    if last is None:
        return draws.choice(ODD)
    what = draws.randrange(3)
    if what == 0 and isinstance(at, dict):
        del at[last]
    elif what == 1 and isinstance(at, list):
        at.insert(last, at[last])
    else:
        at[last] = draws.choice(ODD)
    return value


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_one_value_changed_anywhere(cases: list[kit.Made], seed: int) -> None:
    draws = random.Random(seed)
    made = draws.choice(cases)
    files = made.files()
    name = draws.choice([one for one in sorted(files) if one.endswith((".json", ".jsonl")) and one != "manifest.json"])
    if name.endswith(".jsonl"):
        lines = [json.loads(line) for line in files[name].splitlines()]
        lines = [altered(line, draws) if i == draws.randrange(len(lines)) else line for i, line in enumerate(lines)]
        if name.startswith("inputs/"):
            raw = b"".join(canonical_json(line) + b"\n" for line in lines)
            tampered = kit.refreeze(files, name.partition("-")[2], raw)
        elif all(isinstance(line, dict) for line in lines):
            tampered = kit.retell(files, lambda _: lines, name)
        else:
            tampered = files | {name: b"".join(canonical_json(line) + b"\n" for line in lines)}
    elif name == "plan.json":
        tampered = kit.replan(files, lambda value: altered(value, draws))
    elif name.startswith("inputs/"):
        tampered = kit.refreeze(files, name.partition("-")[2], canonical_json(altered(json.loads(files[name]), draws)))
    else:
        tampered = files | {name: canonical_json(altered(json.loads(files[name]), draws))}
    path = kit.again(made.path.with_name("fuzzed.zip"), tampered)
    found = made.verify(path)
    assert all("\n" not in line for lines in found.reasons.values() for line in lines)
    if found.ok:  # what was changed carries nothing, such as what the suspect's server calls itself
        assert found.finding.log10_p >= made.judged.finding.log10_p and found.finding.grade != "proof"
    if seed % 4 == 0:
        done = kit.second(path)
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr
