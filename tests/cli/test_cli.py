"""The command line: help is quick and complete, errors are lines with exit codes, JSON is one object."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import spiritsafe

COMMANDS = [
    ["demo"],
    ["distill"],
    ["collect"],
    ["curate"],
    ["train"],
    ["evaluate"],
    ["report"],
    ["teachers", "run"],
    ["teachers", "probe"],
    ["terms", "list"],
    ["terms", "show"],
    ["terms", "check"],
    *(["accounts", name] for name in ("add", "list", "show", "set", "suspend", "restore", "link", "unlink")),
    *(["accounts", "key", name] for name in ("issue", "rotate", "set", "revoke")),
    ["accounts", "terms", "accept"],
    *(["evidence", "canary", name] for name in ("new", "list", "show", "retire")),
    ["evidence", "twins", "export"],
    *(["audit", name] for name in ("plan", "timestamp", "run", "verify", "attest")),
    *(["ledger", name] for name in ("verify", "export", "checkpoint")),
    ["serve"],
    *(["watermark", "keys", name] for name in ("new", "rotate", "show", "commit", "open", "verify")),
    *(["watermark", name] for name in ("detect", "trace", "attack", "bench")),
]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spiritsafe", *arguments], capture_output=True, text=True, timeout=60, cwd=cwd
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_without_control_characters(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert "\x1b" not in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from spiritsafe.cli import _main; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "transformers", "pyarrow", "numpy", "aiohttp", "matplotlib", "pydantic"):
        assert f"'{heavy}'" not in loaded


def test_version_is_the_packages() -> None:
    assert run("--version").stdout == f"spiritsafe {spiritsafe.__version__}\n"
    assert version("spiritsafe") == spiritsafe.__version__


def test_terms_list_is_one_json_object() -> None:
    listed = json.loads(run("terms", "list", "--json").stdout)
    assert {"apache-2.0"} <= {entry["id"] for entry in listed["entries"]}


def test_terms_check_of_a_recipe_exits_3_when_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "teacher: {model: gpt-4o, base_url: 'https://api.openai.com/v1', terms: mit}\n"
        "prompts: {source: python-stdlib}\nstudent: {init: some/model}\n"
    )
    refused = run("terms", "check", str(recipe), "--json")
    assert refused.returncode == 3
    assert json.loads(refused.stdout)["status"] == "forbidden_competing"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["distill", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["distill"], 2, "RECIPE"),
        (["frobnicate"], 2, "frobnicate"),
        (["train", "."], 2, "manifest"),
        (["terms", "show", "no-such-licence"], 2, "no-such-licence"),
        (["terms", "check", "missing.parquet"], 2, "missing.parquet"),
        (["teachers", "run", "missing.gguf"], 2, "missing.gguf"),
        (["teachers", "run", "x.gguf", "--api-key-env", "NOT_SET_ANYWHERE"], 2, "NOT_SET_ANYWHERE"),
    ],
)
def test_bad_usage_and_input_exit_2(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    failed = run(*arguments, cwd=tmp_path)
    assert failed.returncode == code, failed.stderr
    assert said.lower() in failed.stderr.lower()
    assert "Traceback" not in failed.stderr


def test_set_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "teacher: {path: model.gguf}\nprompts: {source: python-stdlib}\nstudent: {init: some/model}\n"
    )
    failed = run("distill", "r.yaml", "--set", "train.epoch=3", cwd=tmp_path)
    assert failed.returncode == 2
    assert re.search(r"unknown key train\.epoch; did you mean epochs\?", failed.stderr)


def test_debug_adds_the_traceback() -> None:
    failed = run("distill", "nowhere.yaml", "--debug")
    assert failed.returncode == 2
    assert "Traceback" in failed.stderr
