"""Freezing: what is written, what is refused afterwards, and that tries are counted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from freeze_kit import write_plan, write_reference, write_twins

from services import free_port
from spiritsafe.audit import _frozen
from spiritsafe.audit._freeze import freeze, load_frozen
from spiritsafe.audit._sign import load_public, read_statement, verify_dsse
from spiritsafe.audit._tsa import verify_timestamp
from spiritsafe.audit.tests import open_test
from spiritsafe.errors import BadInput, Refused, SpiritsafeError
from timestamps import running_authority

_TWINS = {"kind": "twins", "pairs": "pairs.jsonl", "ledger": "ledger.jsonl"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_reference(tmp_path)
    return tmp_path


@pytest.fixture
def plan(folder: Path) -> Path:
    return write_plan(folder)


def test_the_hash_is_that_of_the_file_and_the_file_is_canonical(plan):
    frozen = freeze(plan)
    raw = plan.with_name("PLAN.frozen.json").read_bytes()
    assert frozen.raw == raw
    assert frozen.hash == hashlib.sha256(raw).hexdigest()
    assert raw == json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":")).encode()


def test_what_is_frozen(plan, folder):
    document = json.loads(freeze(plan).raw)
    digest = hashlib.sha256((folder / "reference.jsonl").read_bytes()).hexdigest()
    name = f"inputs/{digest[:12]}-reference.jsonl"
    assert document["format"] == "spiritsafe-plan/1"
    assert document["inputs"][name]["sha256"] == digest
    assert document["plan"]["tests"][0]["reference"] == name
    assert document["plan"]["alpha"] == 1e-3  # defaults are written out
    assert document["families"] == {"equality": 1}
    assert "draws of one distribution" in document["nulls"]["equality"]
    assert (document["superseded"], document["abandoned"]) == ([], 0)
    assert len(document["code"]["sha256"]) == 64
    inputs = json.dumps([document["inputs"], document["leaves"]], sort_keys=True, separators=(",", ":"))
    assert document["decoy_seed"] == hashlib.sha256(inputs.encode()).hexdigest()
    assert str(folder) not in json.dumps(document)


def test_a_seed_of_ones_own(folder):
    assert freeze(write_plan(folder, decoy_seed="00ff" * 4)).decoy_seed == b"\x00\xff" * 4


def test_a_seed_of_half_a_byte(folder):
    with pytest.raises(BadInput, match="odd number"):
        freeze(write_plan(folder, decoy_seed="0" * 17))


def test_it_is_loaded_as_it_was_frozen(plan):
    frozen, loaded = freeze(plan), load_frozen(plan)
    assert loaded == frozen
    assert loaded.notes == ()


def test_a_test_opens_from_what_is_frozen(plan):
    frozen = freeze(plan)
    test = open_test(frozen.plan.tests[0], frozen.evidence("equality"))
    assert len(test.items()) > 0


def test_a_plan_that_is_not_frozen(plan):
    with pytest.raises(Refused, match="not frozen; run first: spiritsafe audit plan"):
        load_frozen(plan)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p | {"alpha": 0.01}, "plan.alpha"),
        (lambda p: p | {"question": "Another?"}, "plan.question"),
        (lambda p: p | {"tests": [p["tests"][0] | {"samples": 11}]}, "plan.tests.0.samples"),
        (lambda p: p | {"tests": p["tests"] * 1 + [p["tests"][0] | {"name": "more"}]}, "plan.tests"),
        (lambda p: p | {"subject": p["subject"] | {"model": "n"}}, "plan.subject.model"),
        (lambda p: p | {"budget": {"usd": 5}}, "plan.budget.usd"),
    ],
)
def test_a_plan_changed_since(plan, change, says):
    freeze(plan)
    plan.write_text(yaml.safe_dump(change(yaml.safe_load(plan.read_text()))))
    with pytest.raises(Refused, match="is not what was frozen; restore it") as caught:
        load_frozen(plan)
    assert says in str(caught.value)


def test_comments_and_order_are_no_change(plan):
    freeze(plan)
    backwards = dict(reversed(yaml.safe_load(plan.read_text()).items()))
    plan.write_text("# why we ask\n" + yaml.safe_dump(backwards, sort_keys=False))
    load_frozen(plan)


def test_an_input_changed_since(plan, folder):
    freeze(plan)
    with (folder / "reference.jsonl").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(Refused, match=r"the file reference\.jsonl is not what was frozen"):
        load_frozen(plan)


def test_an_input_gone_since(plan, folder):
    freeze(plan)
    (folder / "reference.jsonl").unlink()
    with pytest.raises(Refused, match="no such file"):
        load_frozen(plan)


def test_other_code_is_a_note(plan, monkeypatch):
    freeze(plan)
    frozen = plan.with_name("PLAN.frozen.json")
    document = json.loads(frozen.read_bytes())
    document["code"] = {"spiritsafe": "0.0.1", "sha256": "0" * 64}
    frozen.write_text(json.dumps(document))
    (note,) = load_frozen(plan).notes
    assert "0.0.1" in note


def test_the_code_hash_is_of_the_sources(tmp_path):
    files = sorted(Path(_frozen.__file__).parents[1].rglob("*.py"))
    root = Path(_frozen.__file__).parents[1]
    listed = [[str(file.relative_to(root)), hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
    assert _frozen.code_hash() == hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-1],
        lambda raw: b"[]",
        lambda raw: b"[" * 200_000,
        lambda raw: b"\xff" + raw,
        lambda raw: raw.replace(b'"abandoned":0', b'"abandoned":"0"'),
        lambda raw: raw.replace(b'"nulls"', b'"nils"'),
        lambda raw: raw.replace(b'"superseded":[]', b'"superseded":{}'),
    ],
)
def test_a_damaged_frozen_plan(plan, damage):
    freeze(plan)
    file = plan.with_name("PLAN.frozen.json")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BadInput, match="not a frozen plan, or damaged"):
        load_frozen(plan)
    with pytest.raises(BadInput, match="not a frozen plan, or damaged"):  # and it is not overwritten either
        freeze(plan, again=True)


def test_a_folder_where_the_frozen_plan_should_be(plan):
    plan.with_name("PLAN.frozen.json").mkdir()
    for work in (freeze, load_frozen):
        with pytest.raises(BadInput, match="cannot be read"):
            work(plan)


def test_what_cannot_be_written_is_said_in_one_line(plan):
    plan.with_name("PLAN.frozen.sig.json").mkdir()
    with pytest.raises(BadInput, match="cannot be written"):
        freeze(plan)
    assert not plan.with_name("PLAN.frozen.json").exists()


def test_it_is_not_frozen_twice(plan):
    before = freeze(plan).raw
    with pytest.raises(Refused, match=r"frozen already .* --again"):
        freeze(plan)
    assert plan.with_name("PLAN.frozen.json").read_bytes() == before


def test_every_try_is_kept_and_counted(plan, folder):
    first = freeze(plan)
    (folder / "PLAN.run").mkdir()
    (folder / "PLAN.run" / "attempts.jsonl").write_text('{"attempt":1}\n{"attempt":2}\n')
    plan = write_plan(folder, alpha=0.01)
    second = freeze(plan, again=True)
    (folder / "PLAN.run").mkdir()
    (folder / "PLAN.run" / "attempts.jsonl").write_text('{"attempt":1}\n')
    third = freeze(write_plan(folder, alpha=0.02), again=True)
    assert second.document["superseded"] == [first.hash]
    assert second.document["abandoned"] == 2
    assert third.document["superseded"] == [first.hash, second.hash]
    assert third.document["abandoned"] == 3
    assert (folder / "PLAN.frozen.1.json").read_bytes() == first.raw
    assert (folder / "PLAN.frozen.2.json").read_bytes() == second.raw
    assert (folder / "PLAN.run.1" / "attempts.jsonl").exists()
    assert not (folder / "PLAN.run").exists()


def test_deleting_the_frozen_plan_does_not_hide_the_ones_before(plan, folder):
    first = freeze(plan)
    freeze(write_plan(folder, alpha=0.01), again=True)
    (folder / "PLAN.frozen.json").unlink()
    with pytest.raises(Refused, match="frozen already"):
        freeze(plan)
    assert freeze(plan, again=True).document["superseded"] == [first.hash]


def test_nothing_is_written_if_a_test_cannot_be_opened(plan, folder):
    (folder / "reference.jsonl").write_text('{"prompt": "but no completion"}\n')
    with pytest.raises(BadInput):
        freeze(plan)
    assert {file.name for file in folder.iterdir()} == {"PLAN.yaml", "reference.jsonl"}


def test_a_signed_and_timestamped_plan(folder, tmp_path_factory):
    import subprocess

    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", "k.pem"], cwd=folder, check=True)
    subprocess.run(["openssl", "pkey", "-in", "k.pem", "-pubout", "-out", "k.pub"], cwd=folder, check=True)
    with running_authority(tmp_path_factory.mktemp("tsa")) as authority:
        plan = write_plan(folder, signer="k.pem", tsa=authority.url)
        first = freeze(plan)
        verify_timestamp(first.timestamp.read_bytes(), first.raw, authority.roots)
        envelope = json.loads(first.signature.read_bytes())
        payload = verify_dsse(envelope, load_public(folder / "k.pub"))
        assert read_statement(payload, "urn:spiritsafe:audit-plan:1")[0] == {"plan.json": first.hash}
        assert load_frozen(plan) == first
        for name in ("PLAN.frozen.tsr", "PLAN.frozen.sig.json"):
            (folder / name).rename(folder / "away")
            with pytest.raises(Refused, match=f"{name}: missing; restore it"):
                load_frozen(plan)
            (folder / "away").rename(folder / name)
        # a plan that asks for neither does not inherit them, and the old ones stay with the old plan
        second = freeze(write_plan(folder), again=True)
    assert (second.timestamp, second.signature) == (None, None)
    verify_timestamp((folder / "PLAN.frozen.1.tsr").read_bytes(), first.raw, authority.roots)
    assert (folder / "PLAN.frozen.1.sig.json").exists()


def test_no_timestamp_no_frozen_plan(folder):
    plan = write_plan(folder, tsa=f"http://127.0.0.1:{free_port()}/")
    with pytest.raises(SpiritsafeError, match="no timestamp"):
        freeze(plan)
    assert not (folder / "PLAN.frozen.json").exists()


async def test_twins_lean_on_the_ledgers_head(folder):
    lines = await write_twins(folder, pairs=6, opened=4)
    frozen = freeze(write_plan(folder, tests=[_TWINS], stop={"rule": "e-value"}))
    said = frozen.document["commitments"]["twins"]
    last = json.loads((folder / "ledger.jsonl").read_text().splitlines()[-1])
    assert said["ledger_head"] == {"seq": last["seq"], "hash": last["hash"]}
    assert said["committed"] == len(lines) == 6
    assert frozen.inputs[said["file"]] == folder / "ledger.jsonl"
    assert frozen.evidence("twins").sequential
    assert load_frozen(folder / "PLAN.yaml") == frozen


async def test_only_twins_that_the_plan_names_are_counted(folder):
    await write_twins(folder, pairs=6)
    frozen = freeze(write_plan(folder, tests=[_TWINS | {"account": "acct_1"}]))
    assert frozen.document["commitments"]["twins"]["committed"] == 3


async def test_a_ledger_that_is_not_whole(folder):
    await write_twins(folder, pairs=6)
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(BadInput, match="not a whole ledger"):
        freeze(write_plan(folder, tests=[_TWINS]))


async def test_only_the_primary_test_may_stop_early(folder):
    await write_twins(folder)
    tests = [_TWINS, _TWINS | {"name": "second"}]
    frozen = freeze(write_plan(folder, tests=tests, stop={"rule": "e-value"}))
    assert frozen.evidence("twins").sequential
    assert not frozen.evidence("second").sequential


def test_a_control_leads_to_its_weights(folder):
    (folder / "c.gguf").write_bytes(b"GGUF")
    frozen = freeze(write_plan(folder, controls={"one": {"path": "c.gguf"}}))
    assert frozen.plan.controls["one"].path.startswith("weights/")
    assert frozen.control("one").path == str(folder / "c.gguf")
    assert str(folder) not in frozen.control("one").model_id
    (folder / "c.gguf").write_bytes(b"GGUG")
    with pytest.raises(Refused, match=r"the file c\.gguf is not what was frozen"):
        load_frozen(folder / "PLAN.yaml")
