"""A frozen plan out of a case: the same plan, or one clear line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from coins_kit import write_lines
from freeze_kit import unpack, write_canaries, write_keys, write_plan, write_reference, write_twins
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spiritsafe.audit import _freeze
from spiritsafe.audit._freeze import Frozen, freeze, plan_from
from spiritsafe.audit._inputs import gather
from spiritsafe.audit.tests import open_test
from spiritsafe.errors import BadInput
from spiritsafe.keys import commit_keys
from train_kit import save_tiny


@pytest.fixture
def frozen(tmp_path: Path) -> Frozen:
    write_reference(tmp_path)
    return freeze(write_plan(tmp_path))


@pytest.fixture
def case(frozen: Frozen, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    return unpack(frozen, tmp_path / "case"), tmp_path / "case"


def test_the_same_plan_comes_back(frozen, case):
    document, folder = case
    found = plan_from(document, folder)
    assert (found.plan, found.raw, found.hash, found.document) == (
        frozen.plan, frozen.raw, frozen.hash, frozen.document
    )  # fmt: skip
    assert (found.decoy_seed, found.families, found.leaves) == (frozen.decoy_seed, frozen.families, frozen.leaves)
    assert set(found.inputs) == set(frozen.inputs)
    assert open_test(found.plan.tests[0], found.evidence("equality")).null == document["nulls"]["equality"]


async def test_twins_open_again_from_a_case(tmp_path):
    await write_twins(tmp_path)
    test = {"kind": "twins", "pairs": "pairs.jsonl", "ledger": "ledger.jsonl"}
    frozen = freeze(write_plan(tmp_path, tests=[test]))
    found = plan_from(unpack(frozen, tmp_path / "case"), tmp_path / "case")
    ours, theirs = (open_test(f.plan.tests[0], f.evidence("twins")).items() for f in (frozen, found))
    assert ours == theirs


@pytest.mark.slow  # compiles the marks' kernels
async def test_every_kind_of_test_freezes_and_opens_again_from_a_case(tmp_path):
    """All six in one plan, each with all the files it can name; what they ask is the same from the case."""
    write_keys(tmp_path)
    await write_twins(tmp_path)
    await write_canaries(tmp_path)
    for name in ("reference.jsonl", "control.jsonl", "base.jsonl", "control-base.jsonl"):
        write_reference(tmp_path, name)
    for seed, name in enumerate(("teacher", "base", "sibling")):
        save_tiny(tmp_path / name, seed=seed)
    write_lines(tmp_path / "texts.jsonl", [{"prompt": "say", "completion": "the cat sat on the mat"}])
    tests: list[dict[str, Any]] = [
        {"kind": "twins", "pairs": "pairs.jsonl", "ledger": "ledger.jsonl"},
        {"kind": "canaries", "canaries": "canaries.jsonl", "ledger": "canaries-ledger.jsonl"},
        {
            "kind": "radioactivity", "texts": "texts.jsonl", "tokenizer": "teacher", "commitment": "COMMITMENT.json",
            "leaves": ["epoch.json", "coin.json"], "per_account": ["account.json"], "marking": {"scheme": "gumbel-dual"},
        },
        {"kind": "lineage", "teacher": "teacher", "base": "base", "siblings": {"one": "sibling"}},
        {"kind": "equality", "reference": "reference.jsonl"},
        {
            "kind": "similarity", "reference": "reference.jsonl", "controls": {"one": "control.jsonl"},
            "base": "base.jsonl", "control_bases": {"one": "control-base.jsonl"},
        },
    ]  # fmt: skip
    frozen = freeze(write_plan(tmp_path, tests=tests, subject={"name": "s", "access": "weights"}))
    assert frozen.document["commitments"]["canaries"]["committed"] == 2
    assert not [name for name in frozen.inputs if name.endswith(".safetensors")]
    found = plan_from(unpack(frozen, tmp_path / "case"), tmp_path / "case")
    assert found.hash == frozen.hash
    for test in frozen.plan.tests:
        here, there = (open_test(test, f.evidence(test.kind)) for f in (frozen, found))
        assert here.null == there.null == frozen.document["nulls"][test.kind]
        assert here.items() == there.items()
        assert len(here.items()) > 0


@pytest.mark.parametrize("field", ["ledger_head", "committed", "timestamp", "file"])
async def test_a_ledger_has_to_be_what_the_plan_says_of_it(tmp_path, field):
    await write_twins(tmp_path)
    test = {"kind": "twins", "pairs": "pairs.jsonl", "ledger": "ledger.jsonl"}
    document = unpack(freeze(write_plan(tmp_path, tests=[test])), tmp_path / "case")
    document["commitments"]["twins"][field] = {"ledger_head": {"seq": 1, "hash": "0" * 64}, "committed": 7}.get(
        field, "x"
    )
    with pytest.raises(BadInput, match="twins: "):
        plan_from(document, tmp_path / "case")


def _first(document: dict[str, Any]) -> str:
    return next(iter(document["inputs"]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(format="spiritsafe-plan/2"), "not a frozen plan"),
        (lambda d: d.pop("nulls"), "not a frozen plan"),
        (lambda d: d.update(extra=1), "not a frozen plan"),
        (lambda d: d.update(abandoned=True), "not a frozen plan"),
        (lambda d: d["plan"].pop("question"), "question is missing"),
        (lambda d: d["plan"].update(alpha=2), "alpha"),
        (lambda d: d["plan"]["tests"][0].update(kind="guess"), "plan.json"),
        (lambda d: d["plan"]["tests"].clear(), "plan.json"),
        (lambda d: d.update(families={"equality": 2}), "families"),
        (lambda d: d.update(families={}), "families"),
        (lambda d: d["families"].update(equality=True), "families"),
        (lambda d: d["plan"].update(alpha="0.001"), "as freezing does"),
        (lambda d: d["plan"].pop("stop"), "as freezing does"),
        (lambda d: d["commitments"].update(equality={}), "not those of its tests"),
        (lambda d: d.update(decoy_seed="00" * 32), "decoy seed"),
        (lambda d: d["plan"].update(decoy_seed="0" * 17), "decoy seed"),
        (lambda d: d.update(nulls={}), "null hypotheses"),
        (lambda d: d["inputs"][_first(d)].update(sha256="0" * 64), "is not the file that was frozen"),
        (lambda d: d["inputs"][_first(d)].update(bytes=1), "is not the file that was frozen"),
        (lambda d: d["inputs"].update({_first(d): None}), "is not the file that was frozen"),
        (lambda d: d["inputs"].update({"inputs/000000000000-x": {}}), "the case does not have it"),
        (lambda d: d["inputs"].update({"inputs/../../../etc/passwd": {}}), "no name of an input"),
        (lambda d: d["inputs"].update({"/etc/passwd": {}}), "no name of an input"),
        (lambda d: d["inputs"].update({"inputs/000000000000-x/../../y": {}}), "no name of an input"),
        (lambda d: d["leaves"].update(equality=[]), "reveal.json"),
    ],
)
def test_a_plan_tampered_with(case, change, says):
    document, folder = case
    change(document)
    with pytest.raises(BadInput, match=says) as caught:
        plan_from(document, folder)
    assert "\n" not in str(caught.value)


def test_an_input_swapped_in_the_case(case):
    document, folder = case
    (folder / _first(document)).write_bytes(b"{}")
    with pytest.raises(BadInput, match="is not the file that was frozen"):
        plan_from(document, folder)


def test_a_link_out_of_the_case(case, tmp_path):
    document, folder = case
    target = folder / _first(document)
    target.rename(tmp_path / "outside")
    target.symlink_to(tmp_path / "outside")
    with pytest.raises(BadInput, match="the case does not have it"):
        plan_from(document, folder)


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=9), st.just([]), st.just({}), st.just([{}])
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_is_refused_or_harmless(case, data):
    """Whatever stands in place of any part of plan.json: a plan with another hash, or one line; never an exception of
    another kind."""
    document, folder = copy.deepcopy(case[0]), case[1]
    node: Any = document
    while True:
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        place = data.draw(st.sampled_from(places))
        inner = node[place]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        node = inner
    node[place] = data.draw(_VALUES)
    changed = json.dumps(document) != json.dumps(case[0])
    try:
        found = plan_from(document, folder)
    except BadInput as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert changed == (found.hash != _freeze.plan_from(case[0], folder).hash)


class TestOpenedKeys:
    """With a commitment and three opened keys. The test itself is not opened here: only its keys matter."""

    @pytest.fixture
    def marked(self, tmp_path: Path) -> tuple[dict[str, Any], Path]:
        write_reference(tmp_path)
        write_keys(tmp_path)
        (tmp_path / "tok").mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "tok" / name).write_text("{}")
        test = {
            "kind": "radioactivity", "texts": "reference.jsonl", "tokenizer": "tok", "commitment": "COMMITMENT.json",
            "leaves": ["epoch.json", "coin.json"], "per_account": ["account.json"],
        }  # fmt: skip
        found = gather(write_plan(tmp_path, tests=[test]))
        document = _freeze._described(found, {}) | {
            "format": "spiritsafe-plan/1", "families": {"radioactivity": 1}, "nulls": {"radioactivity": "…"},
            "superseded": [], "abandoned": 0, "code": {}, "frozen_at": "2026-11-24T18:00:00Z",
        }  # fmt: skip
        document["decoy_seed"] = _freeze.seed_of(document["inputs"], document["leaves"])
        frozen = _freeze._frozen(tmp_path / "PLAN.yaml", found, document, json.dumps(document).encode())
        return unpack(frozen, tmp_path / "case"), tmp_path / "case"

    def test_they_come_back_with_their_commitment(self, marked):
        found = plan_from(*marked)
        evidence = found.evidence("radioactivity")
        assert [leaf.purpose for leaf in evidence.leaves] == ["epoch", "coin", "account"]
        assert evidence.commitment is not None
        assert evidence.family == 1
        assert evidence.input(found.plan.tests[0].tokenizer).is_dir()

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda r: r["leaves"]["radioactivity"].pop(), "not those that the plan said"),
            (lambda r: r["leaves"]["radioactivity"].reverse(), "not those that the plan said"),
            (lambda r: r["leaves"]["radioactivity"][0].update(key="0" * 32), "not those that the plan said"),
            (lambda r: r["leaves"]["radioactivity"][0].update(key="xyz"), "reveal.json, radioactivity"),
            (lambda r: r["leaves"].update(other=[]), "does not open keys for the tests"),
            (lambda r: r["leaves"].update(radioactivity=None), "no commitment|reveal"),
            (lambda r: r.pop("leaves"), "does not open keys for the tests"),
        ],
    )
    def test_what_is_revealed_has_to_be_what_was_planned(self, marked, change, says):
        document, folder = marked
        revealed = json.loads((folder / "reveal.json").read_text())
        change(revealed)
        (folder / "reveal.json").write_text(json.dumps(revealed))
        with pytest.raises(BadInput, match=says):
            plan_from(document, folder)

    def test_a_commitment_that_does_not_cover_them(self, marked, tmp_path):
        """Plan and commitment changed together, every hash in order: the keys themselves do not fit."""
        import hashlib

        from spiritsafe.keys import new_keys

        document, folder = marked
        new_keys(tmp_path / "other.json", marking={"scheme": "gumbel-dual"})
        other = commit_keys(tmp_path / "other.json", slots=5)
        content = other.model_dump_json().encode()
        said = document["commitments"]["radioactivity"]
        (folder / said["file"]).write_bytes(content)
        document["inputs"][said["file"]] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        document["decoy_seed"] = _freeze.seed_of(document["inputs"], document["leaves"])
        with pytest.raises(BadInput, match="is not the commitment that the plan describes"):
            plan_from(document, folder)
        said |= {
            "root": other.root,
            "key_set": other.key_set,
            "committed": dict(other.committed),
            "created": other.created,
        }
        document["families"] = {"radioactivity": other.committed["epoch"]}
        with pytest.raises(BadInput, match="is not covered by the commitment of radioactivity"):
            plan_from(document, folder)

    def test_reveal_json_may_be_missing_or_noise(self, marked):
        document, folder = marked
        (folder / "reveal.json").write_bytes(b"\x00")
        with pytest.raises(BadInput, match="not valid JSON"):
            plan_from(document, folder)
        (folder / "reveal.json").unlink()
        with pytest.raises(BadInput, match="the case does not have it"):
            plan_from(document, folder)
