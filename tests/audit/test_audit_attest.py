"""Attestations of a real, tiny distillation whose teacher marks what it says."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spiritsafe.audit._attest import ATTESTATION, attest
from spiritsafe.audit._attested import verify_attestation
from spiritsafe.audit._screen import Screen, screen
from spiritsafe.audit._sign import IN_TOTO, read_statement, sign_dsse, statement
from spiritsafe.cli import main
from spiritsafe.config import load_config
from spiritsafe.distill import Distillation, Recipe, distill
from spiritsafe.errors import BadInput
from spiritsafe.keys import load_keys, new_keys
from spiritsafe.runs import Run, hash_path
from spiritsafe.terms import Registry
from spiritsafe.watermark import NativeDetector, engine_detector
from train_kit import save_tiny, tiny_tokenizer

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
REASON = "our own weights, for a test"

pytestmark = pytest.mark.slow  # a distillation, and kernels that are compiled


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN of a tiny teacher that marks with KEYS.json, both in one folder; collect, curate, train."""
    folder = tmp_path_factory.mktemp("work")
    save_tiny(folder / "teacher")
    new_keys(folder / "KEYS.json", marking={"scheme": "gumbel-dual"}, epoch="2026-11")
    new_keys(folder / "OTHER.json", marking={"scheme": "gumbel-dual"}, epoch="2026-11")
    lines = [
        json.dumps({"prompt": f"say {a} and {b}"}) for a in ["the", "cat", "sat", "on", "a", "mat"] for b in range(10)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    recipe = {
        "name": "tiny-student",
        "teacher": {"path": str(folder / "teacher"), "model": "tiny", "watermark": {"keys": str(folder / "KEYS.json")}},
        "prompts": {"path": str(folder / "prompts.jsonl"), "column": "prompt"},
        "collect": {"max_tokens": 48, "temperature": 1.0},
        "curate": ["drop_empty"],
        "student": {"init": "prune", "layers": 3},
        "train": {"objective": "sft", "epochs": 1, "batch_tokens": 2048},
        "evaluate": {"holdout": 0.1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    job = Distillation(
        Run.open(folder / "run"), load_config(folder / "recipe.yaml", Recipe), Registry.load(), accept_terms=REASON
    )
    distill(job, ("collect", "curate", "train"))
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """A copy, to be damaged."""
    shutil.copytree(finished, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def write_envelope(envelope: Any) -> Path:
        file = tmp_path / "attestation.json"
        file.write_text(envelope if isinstance(envelope, str) else json.dumps(envelope))
        return file

    return write_envelope


def _content(envelope: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    return read_statement(base64.b64decode(envelope["payload"]), ATTESTATION)


def test_it_says_where_the_student_came_from(finished):
    subjects, said = _content(attest(Run(finished), signer=KEY))
    assert set(subjects) == {
        "exchanges.parquet", "curated.parquet", "curation.json", "student/model.safetensors", "student/config.json"
    }  # fmt: skip
    assert all(hash_path(finished / name) == digest for name, digest in subjects.items())
    (teacher,) = said["teachers"]
    assert teacher["teacher"] == "tiny"
    assert teacher["rows"] == 60
    assert 0 < teacher["rows_trained_on"] < 60
    assert teacher["output_tokens"] > 0
    assert teacher["watermark_key_id"].endswith("/2026-11/0")
    assert {record["accepted"] for record in said["terms"]} == {REASON}
    assert said["signer"] == PUBLIC.hex()
    assert said["base"]["sha256"] == {"model.safetensors": hash_path(finished.parent / "teacher" / "model.safetensors")}
    assert said["cost"]["exchanges"] == 60
    assert said["recipe"]["train"]["objective"] == "sft"


def test_it_verifies_with_and_without_the_key_and_the_files(finished, write):
    file = write(attest(Run(finished), signer=KEY))
    found = verify_attestation(file, signer=PUBLIC, files=finished)
    assert found.ok
    assert found.to_dict()["checks"] == {"signatures": "pass", "lineage": "pass", "files": "pass"}
    bare = verify_attestation(file)
    assert bare.ok
    assert bare.to_dict()["checks"] == {"signatures": "unanchored", "lineage": "pass", "files": "not checked"}
    assert REASON in bare.render()


def test_nobody_signed(finished, write):
    file = write(attest(Run(finished)))
    assert verify_attestation(file).signatures == "unanchored"
    found = verify_attestation(file, signer=PUBLIC)
    assert not found.ok
    assert found.faults == ("it is not signed with the key given",)


def test_the_student_alone_can_be_held_against_it(finished, write, tmp_path):
    """Whoever was given the weights has not the exchanges."""
    (tmp_path / "got" / "student").mkdir(parents=True)
    shutil.copy(finished / "student" / "model.safetensors", tmp_path / "got" / "student")
    file = write(attest(Run(finished), signer=KEY))
    assert verify_attestation(file, signer=PUBLIC, files=tmp_path / "got").files == "pass"
    with (tmp_path / "got" / "student" / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x01")
    found = verify_attestation(file, signer=PUBLIC, files=tmp_path / "got")
    assert found.faults == ("student/model.safetensors: not the file that was attested",)
    (tmp_path / "empty").mkdir()
    assert verify_attestation(file, files=tmp_path / "empty").files == "fail"


def _resigned(envelope: dict[str, Any], change: Callable[[dict[str, Any], dict[str, str]], Any]) -> dict[str, Any]:
    """Changed by the signer himself: the signature holds, what it says does not."""
    subjects, said = _content(envelope)
    change(said, subjects)
    return sign_dsse(statement(subjects, ATTESTATION, said), IN_TOTO, KEY)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s, f: f.pop("exchanges.parquet"), "exchanges.parquet is not among the files"),
        (lambda s, f: f.update({"curated.parquet": "0" * 64}), "curated.parquet is not among the files"),
        (lambda s, f: s["recipe"]["curate"].append("exact_dedup"), "training set was not made of these exchanges"),
        (lambda s, f: s["recipe"]["train"].update(epochs=9), "student was not trained on this training set"),
        (lambda s, f: s["recipe"]["teacher"].update(path="elsewhere"), "student was not trained on this training set"),
    ],
)
def test_a_lineage_that_does_not_hold_together(finished, write, change, says):
    found = verify_attestation(write(_resigned(attest(Run(finished), signer=KEY), change)), signer=PUBLIC)
    assert (found.ok, found.signatures, found.lineage) == (False, "pass", "fail")
    assert says in found.faults[0]


def test_other_exchanges_slipped_under_the_same_student(finished, write):
    """Both hashes exchanged, in the stage and among the files: the fingerprints do not follow."""

    def change(said: dict[str, Any], files: dict[str, str]) -> None:
        said["stages"]["collect"]["outputs"]["exchanges"]["sha256"] = files["exchanges.parquet"] = "1" * 64

    found = verify_attestation(write(_resigned(attest(Run(finished), signer=KEY), change)), signer=PUBLIC)
    assert found.faults == ("the training set was not made of these exchanges with this recipe",)


def test_any_change_of_what_is_signed(finished, write):
    envelope = attest(Run(finished), signer=KEY)
    payload = base64.b64decode(envelope["payload"])
    envelope["payload"] = base64.b64encode(payload.replace(b'"accepted":"our', b'"accepted":"her')).decode()
    assert verify_attestation(write(envelope), signer=PUBLIC).signatures == "fail"
    assert verify_attestation(write(envelope)).signatures == "fail"  # with the key inside, too


def test_another_signer(finished, write):
    file = write(attest(Run(finished), signer=Ed25519PrivateKey.generate()))
    assert verify_attestation(file, signer=PUBLIC).signatures == "fail"


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense", "[" * 50_000, '{"payload": 1}'])
def test_files_that_are_no_attestation(write, content):
    with pytest.raises(BadInput) as caught:
        verify_attestation(write(content))
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_is_one_line_or_harmless(finished, write, data):
    def change(said: dict[str, Any], _: dict[str, str]) -> None:
        node: Any = said
        while True:
            place = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
            inner = node[place]
            if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
                break
            node = inner
        node[place] = data.draw(st.sampled_from([None, True, -1, 1.5, "", "x", [], {}, [None], {"a": 1}]))

    file = write(_resigned(attest(Run(finished), signer=KEY), change))
    try:
        found = verify_attestation(file, signer=PUBLIC)
    except BadInput as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        found.render()
        json.dumps(found.to_dict())


@pytest.mark.parametrize("name", ["exchanges.parquet", "curated.parquet", "student/model.safetensors"])
def test_a_run_with_a_file_missing_or_changed_is_not_attested(run, name):
    content = (run.path / name).read_bytes()
    (run.path / name).write_bytes(content + b"x")
    with pytest.raises(BadInput, match="changed since"):
        attest(run)
    (run.path / name).unlink()
    with pytest.raises(BadInput, match="missing, but"):
        attest(run)


def test_a_run_that_never_trained(run):
    manifest = run.manifest()
    del manifest["stages"]["train"]
    run.manifest_file.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="`train` has not finished"):
        attest(run)


def test_a_recipe_edited_afterwards(run):
    manifest = run.manifest()
    manifest["recipe"]["train"]["epochs"] = 7
    run.manifest_file.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="not trained on this training set with this recipe"):
        attest(run)


@pytest.mark.parametrize("key", ["recipe", "stages"])
def test_a_damaged_manifest(run, key):
    run.manifest_file.write_text(json.dumps(run.manifest() | {key: {"train": 1} if key == "stages" else None}))
    with pytest.raises(BadInput):
        attest(run)


def test_an_empty_folder(tmp_path):
    with pytest.raises(BadInput, match="`collect` has not finished"):
        attest(Run(tmp_path))


def test_the_screen_finds_the_marks_and_only_them(finished):
    ours, other = (NativeDetector(load_keys(finished.parent / name)) for name in ("KEYS.json", "OTHER.json"))
    found = screen(finished / "curated.parquet", [Screen("ours", ours), Screen("other", other)])
    assert found[0]["log10_p"] < -30
    assert found[1]["log10_p"] > -3
    assert [one["for"] for one in found] == ["ours", "other"]
    assert found[0]["epoch"] == "2026-11"


def test_the_screen_is_corrected_for_all_that_were_tried(finished):
    ours = NativeDetector(load_keys(finished.parent / "KEYS.json"))
    alone = screen(finished / "curated.parquet", [Screen("a", ours)])[0]["log10_p"]
    ten = screen(finished / "curated.parquet", [Screen("a", ours)] * 10)[0]["log10_p"]
    assert ten == pytest.approx(alone + 1)


def test_an_engines_marks_are_screened_for_too(finished):
    engine = engine_detector("sglang-gumbel", {"key": "07" * 8, "context_window": 2})
    (found,) = screen(finished / "curated.parquet", [Screen("sglang", engine)])
    assert found["log10_p"] > -3
    assert found["scored"] > 0


def test_texts_are_encoded_where_the_ids_are_of_another_tokenizer(finished):
    """The same tokenizer under another hash: what was marked is found in the texts."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["zebra stripes"])
    ours = NativeDetector(load_keys(finished.parent / "KEYS.json"))
    (by_ids,) = screen(finished / "curated.parquet", [Screen("ours", ours)])
    (by_text,) = screen(finished / "curated.parquet", [Screen("ours", ours)], tokenizer)
    assert by_text["log10_p"] < -5
    assert by_text["scored"] != by_ids["scored"]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Runs the command line in this process: (stdout, stderr)."""

    def run_cli(*arguments: str, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        said = capsys.readouterr()
        assert (left.value.code or 0) == code, said.err
        return said.out, said.err

    return run_cli


def test_the_command(run, finished, cli, monkeypatch):
    folder = run.path.parent
    monkeypatch.chdir(folder)
    subprocess.run(["openssl", *["genpkey", "-algorithm", "ed25519", "-out", "k.pem"]], cwd=folder, check=True)
    shutil.copy(finished.parent / "KEYS.json", folder)
    keys = load_keys(folder / "KEYS.json")
    arguments = ("audit", "attest", "run", "--signer", "k.pem", "--screen-keys", "KEYS.json")
    said = json.loads(cli(*arguments, "--json")[0])
    assert said["checks"] == {"signatures": "pass", "lineage": "pass", "files": "pass"}
    assert said["marked"] == [f"key set {keys.id}"]
    assert said["attestation"]["screened"][0]["log10_p"] < -30
    assert keys.epoch_key("2026-11", "gumbel-dual").hex() not in json.dumps(said)
    assert "exists, and stays what was said then" in cli(*arguments, code=2)[1]
    out, _ = cli(*arguments, "--out", "second.json")
    assert "carries marks of key set" in out
    assert REASON in out


def test_the_command_without_a_signer(run, cli):
    out, _ = cli("audit", "attest", str(run.path))
    assert "nobody signed it" in out
    assert "was not screened" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no such run directory"),
        ([".", "--screen-engine", "vllm-gumbel"], "NAME=PARAMS.json"),
        ([".", "--screen-engine", "vllm-gumbel=none.json"], "cannot be read"),
        ([".", "--screen-engine", "nobody=params.json"], "unknown engine nobody"),
        ([".", "--screen-engine", "vllm-gumbel=noise.json"], "not a JSON object"),
        ([".", "--signer", "params.json"], "no private key in PEM form"),
        (["."], "`collect` has not finished"),
    ],
)
def test_the_command_given_wrongly(tmp_path, monkeypatch, cli, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "noise.json").write_text("{")
    assert says in cli("audit", "attest", *arguments, code=2)[1]
    assert not (tmp_path / "attestation.dsse.json").exists()
