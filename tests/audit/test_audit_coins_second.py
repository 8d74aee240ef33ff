"""The verifier that every case carries reads evidence and judges coins as the tests do, with no line in common."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import case_kit
import coins_kit as kit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe.audit.tests._resemblance import Grams
from spiritsafe.ledger import Event
from spiritsafe.ledger._evidence import canary_commit, open_canary


def second(**files: Path) -> Any:
    """The verifier, with these inputs in its case."""
    case = case_kit.verifier("verify_case").files
    case.clear()
    case.update({name: path.read_bytes() for name, path in files.items()})
    return COINS


COINS: Any = case_kit.verifier("verify_coins")
PLAN = {"account": None, "model": None, "since": None, "until": None, "pairs": "pairs", "canaries": "canaries"}


@settings(deadline=None)
@given(st.text(max_size=50), st.text(max_size=50))
def test_resemblance(one: str, other: str) -> None:
    assert COINS.alike(one, other) == Grams(one).like(Grams(other))


@pytest.mark.parametrize("by", ["likelihood", "text"])
@pytest.mark.parametrize(
    "plan", [{}, {"account": "acct_1"}, {"since": str(kit.NOW + 3), "until": "2026-11-18T11:07:00"}]
)
async def test_twins(tmp_path: Path, by: str, plan: dict[str, Any]) -> None:
    rng = np.random.default_rng(len(by) + len(plan))
    lines = [
        kit.pair_line(i, f"this {i}", "" if i % 9 == 8 else f"that {i}", int(rng.integers(2)), account=f"acct_{i % 2}")
        for i in range(40)
    ]
    lines[3]["request"] = {"prompt": [1, 2]}
    lines[3] |= kit.pair_line(3, "this 3", "that 3", 1, request={"prompt": [1, 2]}, account="acct_1")
    ledger = await kit.ledger_of(tmp_path, lines)
    pairs = kit.write_lines(tmp_path / "twins.jsonl", lines[5:])
    test = kit.twins(pairs, ledger, by=by, **plan)
    numbers = iter(rng.normal(-2, 1, 1000))
    words = ["this", "that", "these 3", "this 11"]
    suspect = kit.Scripted(lambda *_: round(float(next(numbers)), 1), lambda *_: str(rng.choice(words)))
    records = await kit.asked(test, suspect)
    records[0] = kit.record("twins", records[0].item, None, "no answer")
    verifier = second(pairs=pairs, ledger=ledger)
    found, withheld = verifier.read_twins(PLAN | plan | {"ledger": "ledger"})
    for sequential in (False, True):
        for some in (records, records[:-4]):
            answers = {record.item: record.got for record in some}
            ours = kit.twins(pairs, ledger, by=by, sequential=sequential, **plan).judge(some)
            log10_p, n = verifier.p_of("twins", found, withheld, answers, sequential)
            assert log10_p == pytest.approx(ours.hypotheses[0].log10_p, abs=1e-9) and n == ours.n_scored


@pytest.mark.parametrize("by", ["likelihood", "text"])
async def test_canaries(tmp_path: Path, by: str) -> None:
    rng = np.random.default_rng(len(by))
    made = [
        open_canary(f"can_{i}", f"question {i}?", [f"answer {v} of {i}" for v in range(5 + i)], i, bytes([i]) * 32)
        for i in range(6)
    ]
    events = []
    for i, one in enumerate(made):
        commit = canary_commit(one["id"], one["prompt"], one["variants"], one["published"], bytes.fromhex(one["salt"]))
        data = {"canary": one["id"], "commit": commit, "variants": len(one["variants"])}
        events.append(Event(kit.NOW + i, "canary_committed", f"canary:{one['id']}", data))
    # a second commitment under an id in use: which of them is opened is the owner's choice, so the other counts as kept back
    events.append(
        Event(
            kit.NOW + 9,
            "canary_committed",
            f"canary:{made[2]['id']}",
            {"canary": made[2]["id"], "commit": "0" * 64, "variants": 6},
        )
    )
    ledger = await kit.ledger_of(tmp_path, events)
    file = kit.write_lines(tmp_path / "canaries.jsonl", made[:5])
    test = kit.canaries(file, ledger, by=by, samples=3, since=str(kit.NOW + 1))
    suspect = kit.Scripted(lambda *_: float(rng.normal()), lambda *_: f"answer {rng.integers(6)} of {rng.integers(6)}")
    records = await kit.asked(test, suspect)
    verifier = second(canaries=file, ledger=ledger)
    found, withheld = verifier.read_canaries(PLAN | {"ledger": "ledger", "since": str(kit.NOW + 1)})
    assert len(found) == 4 and sorted(withheld) == [6, 10]
    for some in (records, records[:2], [*records[:2], kit.record("canaries", records[2].item, None)]):
        ours = test.judge(some)
        answers = {record.item: record.got for record in some}
        log10_p, n = verifier.p_of("canaries", found, withheld, answers, False)
        assert log10_p == pytest.approx(ours.log10_p, abs=1e-9) and n == ours.n_scored
        assert not math.isnan(log10_p)
