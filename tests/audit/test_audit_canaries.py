"""Canaries as evidence: each held against the ledger's event, exact ranks, those kept back counted as lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import coins_kit as kit
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe import pvalue
from spiritsafe.audit import _types as types
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import CanariesConfig
from spiritsafe.audit.tests import open_test
from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput
from spiritsafe.ledger import Event, Ledger, export_ledger
from spiritsafe.ledger._evidence import canary_commit, open_published
from spiritsafe.serve._canaries import Canaries
from spiritsafe.serve._canary_text import invent
from spiritsafe.serve._config import GuardConfig
from spiritsafe.state import Database


def event(canary: dict[str, Any], ts: float = kit.NOW) -> Event:
    salt = bytes.fromhex(canary["salt"])
    commit = canary_commit(canary["id"], canary["prompt"], canary["variants"], canary["published"], salt)
    data = {"canary": canary["id"], "commit": commit, "variants": len(canary["variants"])}
    return Event(ts, "canary_committed", f"canary:{canary['id']}", data)


async def stored(tmp_path: Path, some: list[dict[str, Any]]) -> tuple[Path, Path]:
    ledger = await kit.ledger_of(tmp_path, [event(one, kit.NOW + i) for i, one in enumerate(some)])
    return kit.write_lines(tmp_path / "canaries.jsonl", some), ledger


def likes(texts: set[str]) -> kit.Scripted:
    return kit.Scripted(lambda _, text: -1.0 if text in texts else -1.5)


def published_of(some: list[dict[str, Any]]) -> set[str]:
    return {one["variants"][one["published"]] for one in some}


async def test_canaries_of_a_real_guard_by_likelihood_and_by_text(tmp_path: Path) -> None:
    upstream = {
        "name": "u",
        "base_url": "http://127.0.0.1:9/v1",
        "models": ["m"],
        "price": {"input_per_mtok": 1, "output_per_mtok": 1},
    }
    config = parse_config({"upstreams": [upstream]}, GuardConfig, where="test")
    async with await Database.open(f"sqlite:///{tmp_path / 'guard.db'}") as db:
        ledger = await Ledger.open(db, commit_ms=1)
        guard = await Canaries.open(db, config, ledger)
        planted = [await guard.new(*invent(size)) for size in (50, 200, 20)]
        await ledger.aclose()
        await export_ledger(db, tmp_path / "ledger.jsonl", everything=True)
    # as `evidence canary show --secret --json` prints them, in an array
    file = tmp_path / "canaries.json"
    file.write_bytes(orjson.dumps([{"state": one.state, **one.opened(all_variants=True)} for one in planted]))
    known = {one.prompt: one.answer for one in planted}
    by_likelihood = kit.canaries(file, tmp_path / "ledger.jsonl")
    outcome = by_likelihood.judge(await kit.asked(by_likelihood, likes(set(known.values()))))
    assert outcome.log10_p == pytest.approx(math.log10(1 / (50 * 200 * 20)))
    assert (outcome.most, outcome.n_scored, outcome.notes) == ("proof", 3, ())
    assert [item.id for item in by_likelihood.items()] == [one.id for one in planted]

    by_text = kit.canaries(file, tmp_path / "ledger.jsonl", by="text", samples=2, max_tokens=32)
    suspect = kit.Scripted(reply=lambda prompt, n: f"I think: {known[prompt.messages[0].content]} Or not." if n else "")
    outcome = by_text.judge(await kit.asked(by_text, suspect))
    assert outcome.log10_p == pytest.approx(math.log10(1 / (50 * 200 * 20)))
    ignorant = kit.Scripted(reply=lambda *_: "")
    assert by_text.judge(await kit.asked(by_text, ignorant)).log10_p == 0.0  # ties are against


async def test_ranks_and_facts(tmp_path: Path) -> None:
    some = [kit.opened_canary(i, i) for i in range(3)]
    test = kit.canaries(*await stored(tmp_path, some))
    records = []
    for i, rank in enumerate((1, 3, 8)):
        order = [v for v in range(8) if v != i]
        order.insert(rank - 1, i)
        scores = [[-float(order.index(v) + 1) * 4, 4] for v in range(8)]
        records.append(kit.record("canaries", f"can_{i}", {"logprobs": scores}))
    outcome = test.judge(records)
    facts = outcome.hypotheses[0].facts
    assert facts["ranks"] == [["can_0", 1, 8], ["can_1", 3, 8], ["can_2", 8, 8]]
    assert outcome.log10_p == pvalue.rank_sum([1, 3, 8], [8, 8, 8])
    assert outcome.log10_p <= facts["log10_p_fisher"] == pytest.approx(pvalue.gamma(3, math.log(8 * 8 / 3)))
    assert outcome.effect["value"] == 3 / 8 and outcome.effect["first"] == 1
    assert outcome == test.judge(records[::-1])
    config = CanariesConfig(kind="canaries", canaries="c", ledger="l")
    again = open_test(
        config, Evidence({"c": tmp_path / "canaries.jsonl", "l": tmp_path / "ledger.jsonl"}, b"", family=4)
    )
    assert again.judge(records).log10_p == min(0.0, outcome.log10_p + math.log10(4))
    json.dumps(facts, allow_nan=False)


async def test_ties_are_against(tmp_path: Path) -> None:
    test = kit.canaries(kit.write_lines(tmp_path / "c.jsonl", [kit.opened_canary(0, 2)]))
    for scores, rank in (
        ([[-1.0, 1]] * 8, 8),
        ([[-2.0, 1]] * 2 + [[-1.0, 1]] * 2 + [[-3.0, 1]] * 4, 2),
        ([[None, 1]] * 8, 8),
        ([[None, 1]] * 2 + [[-9.0, 1]] + [[-1.0, 0]] * 5, 1),
        ([[-4.0, 2]] * 2 + [[-3.0, 2]] + [[-9.0, 2]] * 5, 1),
    ):
        outcome = test.judge([kit.record("canaries", "can_0", {"logprobs": scores})])
        assert outcome.hypotheses[0].facts["ranks"] == [["can_0", rank, 8]]
    assert outcome.most == "lead" and "No ledger" in outcome.notes[0]


async def test_canaries_kept_back_or_not_asked_have_the_last_rank(tmp_path: Path) -> None:
    some = [kit.opened_canary(i, i % 8) for i in range(6)]
    file, ledger = await stored(tmp_path, some)
    kit.write_lines(file, some[:4])
    test = kit.canaries(file, ledger)
    records = await kit.asked(test, likes(published_of(some)))
    outcome = test.judge(records)
    assert outcome.log10_p == pvalue.rank_sum([1] * 4 + [8] * 2, [8] * 6)
    assert "2 canaries of the time that the plan names are not opened" in outcome.notes[0]
    outcome = test.judge(records[:3])
    assert outcome.log10_p == pvalue.rank_sum([1] * 3 + [8] * 3, [8] * 6)
    assert any("1 canaries were not asked" in note for note in outcome.notes)
    outcome = test.judge([*records[:3], replace(records[3], got=None, error="no answer")])
    assert outcome.log10_p == pvalue.rank_sum([1] * 3 + [8] * 2, [8] * 5)
    assert any("1 canaries brought no answer" in note for note in outcome.notes)
    named = kit.canaries(file, ledger, since=str(kit.NOW + 1), until=str(kit.NOW + 4))
    assert named.judge([]).hypotheses[0].facts["not_opened"] == 0 and len(named.items()) == 3
    assert any("1 opened canaries are of another time" in note for note in named.judge([]).notes)


async def test_a_second_commitment_to_the_same_canary_is_one_kept_back(tmp_path: Path) -> None:
    """Otherwise an operator could commit to every choice and open the one that fits."""
    ways = [kit.opened_canary(0, published) for published in range(8)]
    ledger = await kit.ledger_of(tmp_path, [event(one) for one in ways])
    test = kit.canaries(kit.write_lines(tmp_path / "c.jsonl", ways[3:4]), ledger)
    outcome = test.judge(await kit.asked(test, likes(published_of(ways[3:4]))))
    assert outcome.hypotheses[0].facts["not_opened"] == 7 and outcome.log10_p > -0.5
    with pytest.raises(BadInput, match="there twice"):
        kit.canaries(kit.write_lines(tmp_path / "c.jsonl", ways), ledger)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda one: one.update(published=3), "not what the ledger commits to"),
        (lambda one: one["variants"].pop(), "not what the ledger commits to"),
        (lambda one: one["variants"].append("more"), "not what the ledger commits to"),
        (lambda one: one.update(prompt="Another?"), "not what the ledger commits to"),
        (lambda one: one.update(id="can_9"), "not what the ledger commits to"),
        (lambda one: one.update(salt="1" * 64), "not what the ledger commits to"),
        (lambda one: one.update(published=8), "not an opened canary"),
        (lambda one: one.update(published=True), "not an opened canary"),
        (lambda one: one.update(variants="answer"), "not an opened canary"),
        (lambda one: one.update(variants=["a", "a"]), "not an opened canary"),
        (lambda one: one.update(variants=["a", ""]), "not an opened canary"),
        (lambda one: one.update(variants=[["a"], "b"]), "not an opened canary"),
        (lambda one: one.update(format="x"), "not an opened canary"),
        (lambda one: one.update(salt=7), "not an opened canary"),
        (lambda one: one.pop("id"), "not an opened canary"),
    ],
)
async def test_a_doctored_canary_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    some = [kit.opened_canary(i, i) for i in range(2)]
    file, ledger = await stored(tmp_path, some)
    change(some[1])
    with pytest.raises(BadInput, match=f"entry 2: .*{says}"):
        kit.canaries(kit.write_lines(file, some), ledger)


def test_an_opening_of_the_published_answer_alone_is_not_enough(tmp_path: Path) -> None:
    one = open_published("can_0", "question?", ["a", "b"], 1, bytes(32))
    with pytest.raises(BadInput, match=r"only its published answer is opened.*--secret"):
        kit.canaries(kit.write_lines(tmp_path / "c.jsonl", [one]))


@pytest.mark.parametrize(
    "content", [b"[", b"[1]", b'{"id": 1}', b'[{"id": "x"}]', b"[" * 100_000, b"nonsense", b'["x"]']
)
def test_what_is_no_file_of_canaries(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"not JSON|not a JSON|not an opened canary"):
        kit.canaries(path)


@pytest.mark.parametrize(
    "data", [{}, {"canary": "x", "commit": "y", "variants": 10**9}, {"variants": "8"}, {"variants": 1}]
)
async def test_an_event_that_commits_to_nothing_is_named(tmp_path: Path, data: dict[str, Any]) -> None:
    ledger = await kit.ledger_of(tmp_path, [Event(kit.NOW, "canary_committed", "canary:x", data)])
    with pytest.raises(BadInput, match="commits to nothing"):
        kit.canaries(kit.write_lines(tmp_path / "c.jsonl", []), ledger)


async def test_more_canaries_than_anybody_plants_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spiritsafe.audit.tests.canaries._MOST", 3)
    file, ledger = await stored(tmp_path, [kit.opened_canary(i, 0) for i in range(4)])
    with pytest.raises(BadInput, match="4 canaries at once"):
        kit.canaries(file, ledger)
    assert len(kit.canaries(file, ledger, since=str(kit.NOW + 1)).items()) == 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_hostile_files_are_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("canaries") / "c.jsonl"
    one = kit.opened_canary(0, 1, size=3)
    name = data.draw(st.sampled_from([*one, "none of them"]))
    try:
        kit.write_lines(path, [one | {name: data.draw(json_values)}])
    except TypeError:
        return  # orjson does not write it
    try:
        test = kit.canaries(path)
    except BadInput as error:
        said = str(error)
        assert "\n" not in said and len(said) < 400
    else:
        assert len(test.items()) == 1 and test.judge([]).log10_p == 0.0


@settings(deadline=None, max_examples=200)
@given(json_values, st.sampled_from(["likelihood", "text"]))
def test_hostile_answers_are_refused(tmp_path_factory: pytest.TempPathFactory, value: Any, by: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "hostile-canaries"
    folder.mkdir(exist_ok=True)
    if not (path := folder / "c.jsonl").exists():
        kit.write_lines(path, [kit.opened_canary(0, 1, size=3)])
    test = kit.canaries(path, by=by)
    for got in ({"logprobs": value, "replies": value}, {"logprobs": [value] * 3, "replies": [value]}):
        try:
            outcome = test.judge([types.Record("canaries", "can_0", kit.NOW, 1, {}, got)])
        except BadInput as error:
            said = str(error)
            assert said.startswith("transcript of canaries, can_0: ") and len(said) < 200
        else:
            assert math.log10(1 / 3) - 1e-9 <= outcome.log10_p <= 0
