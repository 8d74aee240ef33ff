"""The whole pipeline through the real command: a tiny teacher behind `teachers run`'s server, a recipe, a run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mock_api import mock_api
from served import serving
from train_kit import tiny_model, tiny_tokenizer

WORDS = [
    "cat",
    "mat",
    "hat",
    "bat",
    "rat",
    "sat",
    "that",
    "flat",
    "chat",
    "brat",
    "spat",
    "gnat",
    "vat",
    "pat",
    "fat",
    "slat",
    "drat",
    "splat",
]


def spiritsafe(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "spiritsafe", *arguments], cwd=cwd, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = tiny_tokenizer()
    model = tiny_model(len(tokenizer), layers=4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base_url(teacher_dir: Path) -> Iterator[str]:
    with serving(teacher_dir, model_name="tiny") as url:
        yield url


def write_recipe(folder: Path, base_url: str, teacher_dir: Path, **changes: Any) -> Path:
    prompts = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"say {a} and {b}"}) for a in WORDS for b in WORDS[:3]]
    prompts.write_text("\n".join(lines) + "\n")
    recipe: dict[str, Any] = {
        "name": "tiny-student",
        "teacher": {
            "model": "tiny",
            "base_url": base_url,
            "weights": str(teacher_dir),
            "terms": "apache-2.0",
            "price": {"input_per_mtok": 1.0, "output_per_mtok": 2.0},
        },
        "prompts": {"path": str(prompts), "column": "prompt"},
        "collect": {"budget_usd": 1, "max_tokens": 8, "logprobs": 5},
        "curate": ["exact_dedup", "drop_empty"],
        "student": {"init": "prune", "layers": 3},
        "train": {"objective": "topk", "epochs": 2, "batch_tokens": 512},
        "evaluate": {"holdout": 0.2, "samples": 2, "speed_prompts": 2, "speed_tokens": 4},
    }
    for dotted, value in changes.items():
        stage, _, key = dotted.partition("__")
        if key:
            recipe[stage][key] = value
        else:
            recipe[stage] = value
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base_url: str, teacher_dir: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("work")
    recipe = write_recipe(folder, base_url, teacher_dir)
    done = spiritsafe("distill", str(recipe), "--json", cwd=folder)
    return folder, json.loads(done.stdout)


def test_distill_prints_the_metrics_it_wrote(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    run = folder / "runs" / "tiny-student"
    assert metrics == json.loads((run / "metrics.json").read_text())
    assert {"teacher", "base", "student", "best_untrained", "recovered", "collected", "curated", "train"} <= set(
        metrics
    )
    assert metrics["collected"]["exchanges"] == 54
    assert 0 < metrics["collected"]["usd"] <= 1
    assert metrics["student"]["params"] < metrics["teacher"]["params"]
    for name in (
        "manifest.json",
        "requests.sqlite",
        "exchanges.parquet",
        "curated.parquet",
        "curation.json",
        "report.html",
    ):
        assert (run / name).is_file(), name


def test_a_second_run_does_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    run = folder / "runs" / "tiny-student"
    before = {
        p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name not in ("manifest.json", ".lock")
    }
    again = spiritsafe("distill", "recipe.yaml", "--json", cwd=folder)
    assert json.loads(again.stdout) == metrics
    assert again.stderr.count("already done") == 6
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_larger_budget_asks_nothing_again(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    again = spiritsafe("collect", "recipe.yaml", "--set", "collect.budget_usd=2", cwd=folder)
    assert "already done" in again.stderr


def test_student_and_exchanges_open_with_other_tools(finished: tuple[Path, dict[str, Any]]) -> None:
    import pyarrow.parquet as pq
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = finished[0] / "runs" / "tiny-student"
    model = AutoModelForCausalLM.from_pretrained(run / "student")
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    assert model.config.num_hidden_layers == 3
    ids = tokenizer("say cat", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] >= ids.shape[1]
    assert pq.read_table(run / "exchanges.parquet").num_rows == 54
    rows = load_dataset("parquet", data_files=str(run / "exchanges.parquet"), split="train", cache_dir=str(run / "hf"))
    assert rows[0]["messages"][-1]["role"] == "assistant"
    assert rows[0]["prompt"][0]["role"] == "user"


def test_manifest_and_card_tell_where_the_student_came_from(finished: tuple[Path, dict[str, Any]]) -> None:
    from spiritsafe.runs import hash_path

    run = finished[0] / "runs" / "tiny-student"
    manifest = json.loads((run / "manifest.json").read_text())
    assert set(manifest["stages"]) == {"collect", "curate", "train", "evaluate", "export", "report"}
    for stage in manifest["stages"].values():
        for output in stage["outputs"].values():
            assert hash_path(run / output["path"]) == output["sha256"]
    assert [t["stage"] for t in manifest["terms"]] == ["collect", "train", "export"]
    card = (run / "student" / "README.md").read_text()
    assert card.startswith("---\n")
    header = yaml.safe_load(card.split("---")[1])
    assert "distillation" in header["tags"]
    assert manifest["stages"]["curate"]["outputs"]["curated"]["sha256"] in card
    bom = json.loads((run / "student" / "mlbom.cdx.json").read_text())
    assert bom["metadata"]["component"]["hashes"][0]["content"] == hash_path(run / "student" / "model.safetensors")


def test_a_sibling_recipe_pays_nothing_for_the_same_requests(
    finished: tuple[Path, dict[str, Any]], base_url: str, teacher_dir: Path
) -> None:
    folder, _ = finished
    second = folder / "second"
    second.mkdir()
    recipe = write_recipe(second, base_url, teacher_dir, train__objective="sft", name="other")
    done = spiritsafe("collect", str(recipe), "--run", str(folder / "runs" / "other"), "--json", cwd=folder)
    summary = json.loads(done.stdout)["summary"]
    assert summary["exchanges"] == 54
    assert summary["usd"] == 0
    assert summary["reused"] == 54


@pytest.mark.parametrize(
    ("model", "terms"),
    [("gpt-4o", "apache-2.0"), ("claude-3-5-sonnet", "mit"), ("tiny", None), ("llama-2-7b-chat", "apache-2.0")],
)
def test_a_teacher_the_registry_refuses_gets_no_request(
    tmp_path: Path, teacher_dir: Path, model: str, terms: str | None
) -> None:
    with mock_api() as api:
        recipe = write_recipe(tmp_path, api.base_url, teacher_dir, teacher__model=model, teacher__terms=terms)
        for command in (["distill"], ["distill", "--estimate"], ["collect"]):
            refused = spiritsafe(command[0], str(recipe), *command[1:], cwd=tmp_path, code=3)
            assert len(refused.stderr.strip().splitlines()) == 1
            assert "--accept-terms" in refused.stderr
        assert api.received == []


def test_an_override_shows_in_manifest_card_and_report(tmp_path: Path, base_url: str, teacher_dir: Path) -> None:
    recipe = write_recipe(tmp_path, base_url, teacher_dir, teacher__terms=None)
    spiritsafe("distill", str(recipe), cwd=tmp_path, code=3)
    spiritsafe("distill", str(recipe), "--accept-terms", "written permission 42", "--json", cwd=tmp_path)
    run = tmp_path / "runs" / "tiny-student"
    for shown in ("manifest.json", "student/README.md", "report.html"):
        assert "written permission 42" in (run / shown).read_text(), shown
    # The reason is recorded: the run resumes without being asked again.
    spiritsafe("distill", str(recipe), cwd=tmp_path)


def test_estimate_spends_only_its_probe_and_the_probe_is_kept(tmp_path: Path, base_url: str, teacher_dir: Path) -> None:
    recipe = write_recipe(tmp_path, base_url, teacher_dir)
    estimate = json.loads(spiritsafe("distill", str(recipe), "--estimate", "--json", cwd=tmp_path).stdout)
    assert estimate["collect"]["prompts"] == 54
    assert estimate["collect"]["held"] == 3
    assert 0 < estimate["collect"]["usd"] <= estimate["collect"]["usd_worst"]
    assert estimate["collect"]["seconds"] > 0
    summary = json.loads(spiritsafe("collect", str(recipe), "--json", cwd=tmp_path).stdout)["summary"]
    assert summary["requests"] == 54


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"teacher__price": None}, 2, "price"),
        ({"collect__budget_usd": 0}, 3, "budget"),
        ({"prompts": {"path": "nowhere.jsonl", "column": "prompt"}}, 2, "nowhere.jsonl"),
        ({"prompts__column": "question"}, 2, "question"),
        ({"student__layers": 9}, 2, "9"),
        ({"collect__temprature": 1}, 2, "did you mean temperature"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    tmp_path: Path, base_url: str, teacher_dir: Path, change: dict[str, Any], code: int, said: str
) -> None:
    recipe = write_recipe(tmp_path, base_url, teacher_dir, **change)
    failed = spiritsafe("distill", str(recipe), cwd=tmp_path, code=code)
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in failed.stderr


def test_an_unreachable_teacher_is_named(tmp_path: Path, teacher_dir: Path) -> None:
    recipe = write_recipe(tmp_path, "http://127.0.0.1:9/v1", teacher_dir, collect__retries=0)
    failed = spiritsafe("collect", str(recipe), cwd=tmp_path, code=1)
    assert "127.0.0.1:9" in failed.stderr


def test_topk_without_logprobs_or_weights_says_what_to_do(tmp_path: Path, teacher_dir: Path) -> None:
    with mock_api() as api:
        recipe = write_recipe(
            tmp_path, api.base_url, teacher_dir, teacher__weights=None, student__source=str(teacher_dir)
        )
        failed = spiritsafe("distill", str(recipe), cwd=tmp_path, code=2)
    assert "logprobs" in failed.stderr


def test_two_runs_in_one_directory_are_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    from spiritsafe.runs import Run

    folder, _ = finished
    with Run(folder / "runs" / "tiny-student").lock():
        failed = spiritsafe("distill", "recipe.yaml", cwd=folder, code=2)
    assert "in use by process" in failed.stderr


def test_an_override_is_for_the_teacher_it_was_given_for(tmp_path: Path, base_url: str, teacher_dir: Path) -> None:
    recipe = write_recipe(tmp_path, base_url, teacher_dir, teacher__terms=None)
    spiritsafe("collect", str(recipe), "--accept-terms", "written permission 42", cwd=tmp_path)
    with mock_api() as api:
        for model in ("gpt-4o", "another-unknown-model"):
            other = write_recipe(tmp_path, api.base_url, teacher_dir, teacher__terms=None, teacher__model=model)
            refused = spiritsafe("collect", str(other), cwd=tmp_path, code=3)
            assert "--accept-terms" in refused.stderr
        assert api.received == []
    # The teacher that was accepted still is, for the stages that follow too.
    recipe = write_recipe(tmp_path, base_url, teacher_dir, teacher__terms=None)
    spiritsafe("distill", str(recipe), cwd=tmp_path)
