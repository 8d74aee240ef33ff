"""What a plan names: names in the case, hashes, opened keys held against the commitment, tokenizers, weights."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from freeze_kit import write_keys, write_plan, write_reference

from spiritsafe.audit._inputs import describe_leaf, gather, with_folders
from spiritsafe.errors import BadInput
from spiritsafe.keys import load_leaf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_reference(tmp_path)
    return tmp_path


@pytest.fixture
def tokenizer(folder: Path, shared_tokenizer: Path) -> str:
    return str(shared_tokenizer)


@pytest.fixture(scope="session")
def shared_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer, as `save_pretrained` leaves one: with files that are not its own beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("tok") / "tiny-tok"
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(path)
    (path / "model.safetensors").write_bytes(b"weights, which do not belong in a case")
    (path / ".secret").write_text("nor does this")
    return path


def test_a_file_is_named_by_its_hash(folder):
    found = gather(write_plan(folder))
    digest = hashlib.sha256((folder / "reference.jsonl").read_bytes()).hexdigest()
    name = f"inputs/{digest[:12]}-reference.jsonl"
    assert found.plan.tests[0].reference == name
    assert found.files == {name: folder / "reference.jsonl"}
    assert found.listed == {
        name: {"sha256": digest, "bytes": (folder / "reference.jsonl").stat().st_size, "role": "texts"}
    }


@pytest.mark.parametrize("name", ["our réplies (1).jsonl", "a" * 150 + ".jsonl", "-x y\n.jsonl", "…/../odd.jsonl"])
def test_a_name_in_the_case_is_plain_ascii_and_short(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "reference.jsonl").rename(path)
    found = gather(write_plan(folder, tests=[{"kind": "equality", "reference": name}]))
    (made,) = found.files
    assert re.fullmatch(r"inputs/[0-9a-f]{12}-[A-Za-z0-9._-]{1,80}", made)
    assert made.endswith(".jsonl")  # readers go by it


def test_paths_are_relative_to_the_plan_and_may_be_absolute(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    near = gather(write_plan(folder))
    far = gather(write_plan(folder, tests=[{"kind": "equality", "reference": str(folder / "reference.jsonl")}]))
    assert near.listed == far.listed


def test_one_file_named_twice_is_one_input(folder):
    (folder / "c1.jsonl").write_bytes((folder / "reference.jsonl").read_bytes())
    test = {"kind": "similarity", "reference": "reference.jsonl", "controls": {"one": "c1.jsonl", "two": "c1.jsonl"}}
    found = gather(write_plan(folder, tests=[test]))
    assert len(found.files) == 2
    assert found.plan.tests[0].controls["one"] == found.plan.tests[0].controls["two"]


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ({"kind": "equality", "reference": "gone.jsonl"}, "no such file"),
        ({"kind": "equality", "reference": "."}, "not a file"),
        ({"kind": "lineage", "teacher": "gone.gguf"}, "no such file or folder"),
        ({"kind": "lineage", "teacher": "."}, "no .safetensors"),
        ({"kind": "radioactivity", "texts": "reference.jsonl", "tokenizer": "reference.jsonl"}, "not a GGUF|GGUF"),
    ],
)
def test_what_is_not_there(folder, test, says):
    with pytest.raises(BadInput, match=says):
        gather(write_plan(folder, tests=[test]))


def test_weights_are_hashed_and_not_carried(folder):
    (folder / "student").mkdir()
    (folder / "student" / "model.safetensors").write_bytes(b"weights")
    (folder / "student" / "README.md").write_text("not part of what it says")
    test = {"kind": "lineage", "teacher": "student", "base": "owner/base"}
    found = gather(write_plan(folder, tests=[test]))
    digest = hashlib.sha256(b"weights").hexdigest()
    lineage = found.plan.tests[0]
    assert lineage.teacher == f"weights/{digest[:12]}-student"
    assert found.weights[lineage.teacher] == {"sha256": digest, "name": "student"}
    assert found.sources[lineage.teacher] == str(folder / "student")
    assert found.weights[lineage.base] == {"sha256": None, "name": "owner/base"}
    assert found.sources[lineage.base] == "owner/base"
    assert found.files == {}


def test_a_controls_weights_are_pinned_too(folder):
    (folder / "c.gguf").write_bytes(b"GGUF")
    found = gather(
        write_plan(folder, controls={"one": {"path": "c.gguf"}, "two": {"base_url": "http://h/v1", "model": "m"}})
    )
    assert found.weights[found.plan.controls["one"].path]["sha256"] == hashlib.sha256(b"GGUF").hexdigest()
    assert found.plan.controls["two"].base_url == "http://h/v1"


def test_a_control_that_marks_is_refused(folder):
    (folder / "c.gguf").write_bytes(b"GGUF")
    controls = {"one": {"path": "c.gguf", "watermark": {"keys": "KEYS.json"}}}
    with pytest.raises(BadInput, match="answers unmarked"):
        gather(write_plan(folder, controls=controls))


def test_the_declared_base_may_be_words(folder):
    subject = {"name": "s", "access": "text", "base": "SmolLM2, says its card"}
    assert gather(write_plan(folder, subject=subject)).plan.subject.base == "SmolLM2, says its card"


def test_the_plan_names_the_signers_public_key(folder):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    (folder / "k.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    found = gather(write_plan(folder, signer="k.pem"))
    assert found.plan.signer == key.public_key().public_bytes_raw().hex()
    assert found.signer == folder / "k.pem"


def _radioactivity(tokenizer: str, **changes: object) -> list[dict[str, object]]:
    test = {
        "kind": "radioactivity",
        "texts": "reference.jsonl",
        "tokenizer": tokenizer,
        "leaves": ["epoch.json", "coin.json"],
        "per_account": ["account.json"],
        "commitment": "COMMITMENT.json",
    }
    return [test | changes]


def test_keys_are_named_by_hash_and_stay_out_of_the_inputs(folder, tokenizer):
    commitment, leaves = write_keys(folder)
    found = gather(write_plan(folder, tests=_radioactivity(tokenizer)))
    assert found.leaves == {"radioactivity": (leaves["epoch"], leaves["coin"], leaves["account"])}
    assert found.commitments == {"radioactivity": commitment}
    kept = json.dumps([found.listed, found.plan.model_dump(mode="json"), *map(describe_leaf, leaves.values())])
    for leaf in leaves.values():
        assert leaf.key not in kept
        assert leaf.salt not in kept
        assert f"leaf/{describe_leaf(leaf)['sha256'][:12]}" in kept
    assert not any(b"spiritsafe-leaf" in path.read_bytes() for path in found.files.values())


def test_many_keys_come_in_one_file(folder, tokenizer):
    from spiritsafe.keys import open_accounts

    commitment, leaves = write_keys(folder)
    several = open_accounts(folder / "KEYS.json", "2026-11", range(50), commitment=commitment)
    given = {"format": "spiritsafe-leaves/1", "leaves": [leaf.model_dump(mode="json") for leaf in several]}
    (folder / "slots.json").write_text(json.dumps(given))
    found = gather(write_plan(folder, tests=_radioactivity(tokenizer, per_account=["slots.json"])))
    assert found.leaves == {"radioactivity": (leaves["epoch"], leaves["coin"], *several)}
    assert len(found.plan.tests[0].per_account) == 50
    with pytest.raises(BadInput, match=r"account\.json: this key is given twice"):
        gather(write_plan(folder, tests=_radioactivity(tokenizer, per_account=["slots.json", "account.json"])))
    with pytest.raises(BadInput, match=r"slots\.json: is an account key"):
        gather(write_plan(folder, tests=_radioactivity(tokenizer, leaves=["slots.json", "coin.json"])))


def test_a_leafs_hash_is_of_its_meaning_not_of_its_spelling(folder):
    _, leaves = write_keys(folder)
    (folder / "spaced.json").write_text(json.dumps(json.loads((folder / "epoch.json").read_text()), indent=4))
    said = describe_leaf(load_leaf(folder / "spaced.json"))
    assert said == describe_leaf(leaves["epoch"])
    canonical = json.dumps(leaves["epoch"].model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    assert said["sha256"] == hashlib.sha256(canonical.encode()).hexdigest()  # as the second verifier computes it


def test_a_key_of_another_key_set_is_refused(folder, tmp_path_factory, tokenizer):
    other = tmp_path_factory.mktemp("other")
    write_keys(folder)
    write_keys(other)
    tests = _radioactivity(tokenizer, leaves=["epoch.json", str(other / "coin.json")])
    with pytest.raises(BadInput, match=r"is not covered by COMMITMENT\.json"):
        gather(write_plan(folder, tests=tests))


def test_a_key_of_an_epoch_that_came_later_is_refused(folder, tokenizer):
    """Opened against what the key set would commit to today, not against what was published."""
    from spiritsafe.keys import commit_keys, open_leaf, rotate_keys

    write_keys(folder)
    rotate_keys(folder / "KEYS.json", epoch="2099-01")
    later = open_leaf(folder / "KEYS.json", "2099-01", "epoch", commitment=commit_keys(folder / "KEYS.json", slots=50))
    (folder / "later.json").write_text(later.model_dump_json())
    with pytest.raises(BadInput, match="epoch 2099-01, is not covered"):
        gather(write_plan(folder, tests=_radioactivity(tokenizer, leaves=["later.json", "coin.json"])))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"commitment": None}, "prove nothing without the commitment"),
        ({"leaves": ["epoch.json", "epoch.json"]}, "given twice"),
        ({"leaves": ["epoch.json", "account.json"]}, "account keys belong in per_account"),
        ({"per_account": ["coin.json"]}, "account keys belong in per_account"),
        ({"leaves": ["COMMITMENT.json"]}, "COMMITMENT.json"),
        ({"commitment": "epoch.json"}, "epoch.json"),
    ],
)
def test_keys_given_wrongly(folder, tokenizer, changes, says):
    write_keys(folder)
    with pytest.raises(BadInput, match=says):
        gather(write_plan(folder, tests=_radioactivity(tokenizer, **changes)))


def test_a_timestamp_beside_the_commitment_is_taken_up(folder, tokenizer):
    write_keys(folder)
    assert gather(write_plan(folder, tests=_radioactivity(tokenizer))).published["radioactivity"][1] is None
    (folder / "COMMITMENT.json.tsr").write_bytes(b"token")
    found = gather(write_plan(folder, tests=_radioactivity(tokenizer)))
    file, token = found.published["radioactivity"]
    assert found.files[file] == folder / "COMMITMENT.json"
    assert found.files[token] == folder / "COMMITMENT.json.tsr"
    assert found.listed[token]["role"] == "timestamp"


def test_a_tokenizers_folder_is_taken_without_what_else_is_in_it(folder, tokenizer):
    write_keys(folder)
    found = gather(write_plan(folder, tests=_radioactivity(tokenizer)))
    name = found.plan.tests[0].tokenizer
    assert re.fullmatch(r"inputs/[0-9a-f]{12}-tiny-tok", name)
    taken = {key.removeprefix(f"{name}/") for key in found.files if key.startswith(name)}
    assert taken == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert with_folders(found.files)[name] == Path(tokenizer)
    assert not (folder / "PLAN.inputs").exists()


def test_a_tokenizer_json_stands_for_its_folder(folder, tokenizer):
    write_keys(folder)
    by_folder = gather(write_plan(folder, tests=_radioactivity(tokenizer)))
    by_file = gather(write_plan(folder, tests=_radioactivity(f"{tokenizer}/tokenizer.json")))
    assert by_file.plan.tests[0].tokenizer == by_folder.plan.tests[0].tokenizer


def test_a_tokenizer_json_without_its_config(folder):
    write_keys(folder)
    (folder / "lone.json").write_text("{}")
    with pytest.raises(BadInput, match=r"tokenizer_config\.json"):
        gather(write_plan(folder, tests=_radioactivity("lone.json")))


@pytest.mark.slow
def test_a_gguf_gives_its_tokenizer_and_stays_where_it_is(folder, smollm2_gguf):
    """The 135M model: its tokenizer as files, the same ids and chat template, written once."""
    from spiritsafe.teachers import load_tokenizer
    from spiritsafe.tokens import template_hash, tokenizer_hash

    write_keys(folder)
    plan = write_plan(folder, tests=_radioactivity(str(smollm2_gguf)))
    found = gather(plan)
    name = found.plan.tests[0].tokenizer
    ours, theirs = load_tokenizer(with_folders(found.files)[name]), load_tokenizer(smollm2_gguf)
    assert tokenizer_hash(ours) == tokenizer_hash(theirs)
    assert template_hash(ours) == template_hash(theirs)
    assert sum(said["bytes"] for said in found.listed.values()) < 20e6
    made = {file: file.stat().st_mtime_ns for file in (folder / "PLAN.inputs").rglob("*")}
    assert gather(plan).listed == found.listed
    assert {file: file.stat().st_mtime_ns for file in (folder / "PLAN.inputs").rglob("*")} == made
