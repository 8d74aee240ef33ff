"""Cases of real runs over HTTP: failures and new attempts, controls, early stops, budgets that run out, plans replaced."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import case_kit as kit
import pytest
from aiohttp import web
from coins_kit import fresh_coins, pair_line, write_lines
from run_kit import go, is_probe, plan

from mock_api import Behaviour, Body, completion, mock_api
from spiritsafe.audit import _suspect_calls as calls
from spiritsafe.audit._case import build_case
from spiritsafe.audit._freeze import Frozen, freeze
from spiritsafe.audit._run_folder import RunFolder
from spiritsafe.audit._verify import CaseVerification, verify_case
from spiritsafe.collect import _limiter
from spiritsafe.errors import Refused, SpiritsafeError
from spiritsafe.report import render_case

FREE = {"input_per_mtok": 0, "output_per_mtok": 0}
TWINS = {"kind": "twins", "pairs": "pairs.jsonl", "by": "text", "samples": 1}
EQUALITY = {"kind": "equality", "reference": "reference.jsonl", "samples": 2, "permutations": 99, "max_tokens": 8}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_TRIES", 2)
    monkeypatch.setattr(calls, "_LONGEST_BACKOFF_S", 0.01)
    monkeypatch.setattr(_limiter, "_LONGEST_PAUSE_S", 0.01)


def pairs(folder: Path, count: int = 24) -> dict[str, str]:
    """pairs.jsonl; what was released to each question."""
    made = [pair_line(i, f"one story of {i}", f"some other tale {i}", c) for i, c in enumerate(fresh_coins(5, count))]
    write_lines(folder / "pairs.jsonl", made)
    replies = {line["request_id"]: line["second" if line["coin"] else "first"] for line in made}
    return {
        line["request"]["messages"][-1]["content"]: replies[line["request_id"]]["choices"][0]["message"]["content"]
        for line in made
    }


def says(known: dict[str, str], fails: Callable[[int, Body], bool] = lambda number, body: False) -> Behaviour:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if not is_probe(body) and fails(number, body):
            return web.json_response({"error": {"message": "no"}}, status=400)
        return web.json_response(completion(body, known.get(body["messages"][-1]["content"], "nothing")))

    return behave


def checked(frozen: Frozen, folder: RunFolder) -> tuple[Any, CaseVerification, str]:
    """The case of a run: what it says, what both verifiers say of it."""
    path = frozen.folder / "CASE.zip"
    judged = build_case(frozen, folder, path, render_case)
    found, second = verify_case(path), kit.second(path)
    assert found.ok, found.reasons
    assert second.returncode == 0, second.stdout + second.stderr
    return judged, found, second.stdout


def test_failures_and_a_second_attempt_are_in_the_case(tmp_path: Path) -> None:
    known = pairs(tmp_path)
    tried: list[str] = []

    def fails(number: int, body: Body) -> bool:
        question = body["messages"][-1]["content"]
        tried.append(question)
        return question.endswith(("3", "7")) and tried.count(question) == 1

    with mock_api(says(known, fails)) as api:
        frozen = plan(tmp_path, tests=[TWINS, EQUALITY], alpha=1e-3)
        folder = go(frozen, api)
        go(frozen, api)
    judged, found, said = checked(frozen, folder)
    assert judged.attempts == 2 and judged.outcomes[0].n_scored == 24 and found.finding.grade == "lead"
    assert "the questions and numbers of equality" in said
    page = zipfile.ZipFile(frozen.folder / "CASE.zip").read("report.html").decode()
    assert "Times this audit was started</th><td>2<" in page


def test_failures_that_stay_are_noted_and_left_out(tmp_path: Path) -> None:
    known = pairs(tmp_path)
    with mock_api(says(known, lambda _, body: body["messages"][-1]["content"].endswith("3"))) as api:
        frozen = plan(tmp_path, tests=[TWINS])
        folder = go(frozen, api)
    judged, found, _ = checked(frozen, folder)
    assert judged.outcomes[0].n_scored == 21 and any("3 pairs brought no answer" in n for n in judged.outcomes[0].notes)
    assert found.finding.grade == "lead"


@pytest.mark.parametrize("accused", [False, True])
def test_controls_are_judged_too(tmp_path: Path, accused: bool) -> None:
    known = pairs(tmp_path)
    with mock_api(says(known)) as api, mock_api(says(known if accused else {})) as other:
        control = {"base_url": other.base_url, "model": "c", "price": FREE}
        frozen = plan(tmp_path, tests=[TWINS], controls={"other": control})
        folder = go(frozen, api)
    judged, _, said = checked(frozen, folder)
    assert "controls/other: twins: log10 p = " in said
    (outcome,) = judged.controls["other"]
    assert (outcome.log10_p <= -3) == accused
    assert ("a control that is held to be innocent" in judged.finding.statement) == accused
    files = kit.Made(frozen.folder / "CASE.zip", frozen, folder, judged, None, None).files()
    for bad, check in (
        ({name: raw for name, raw in files.items() if not name.startswith("controls/")}, "plan"),
        (kit.retell(files, lambda lines: lines[1:], "controls/other.jsonl"), "plan"),
        (
            files | {"results.json": kit.edit(files["results.json"], lambda value: value["controls"].clear())},
            "recompute",
        ),
    ):
        path = kit.again(tmp_path / "bad.zip", bad)
        assert verify_case(path).checks[check] == "fail"
        assert kit.second(path).returncode == 1


@pytest.mark.parametrize("share", [0, 1])
def test_a_stop_by_the_e_value(tmp_path: Path, share: int) -> None:
    known = pairs(tmp_path, 60)
    with mock_api(says(known if share else {})) as api, mock_api() as other:
        control = {"base_url": other.base_url, "model": "c", "price": FREE}
        stop = {"rule": "e-value", "batch": 6}
        frozen = plan(tmp_path, tests=[TWINS], controls={"other": control}, stop=stop)
        folder = go(frozen, api)
    judged, _, _ = checked(frozen, folder)
    files = kit.Made(frozen.folder / "CASE.zip", frozen, folder, judged, None, None).files()
    asked = len(kit.unchain(files["transcripts.jsonl"]))
    assert asked == (18 if share else 60)
    # stopping before the rule says so
    path = kit.again(tmp_path / "early.zip", kit.retell(files, lambda lines: lines[:12]))
    assert "have no line" in verify_case(path).reasons["plan"][0]


def test_a_budget_that_runs_out(tmp_path: Path) -> None:
    known = pairs(tmp_path)
    with mock_api(says(known)) as api:
        frozen = plan(tmp_path, tests=[TWINS], budget={"requests": 14, "price": FREE})
        folder = go(frozen, api)
    judged, found, _ = checked(frozen, folder)
    assert 0 < judged.outcomes[0].n_scored < 24 and found.ok


def test_plans_that_were_replaced_are_counted(tmp_path: Path) -> None:
    known = pairs(tmp_path)
    with mock_api(says(known)) as api:
        first = plan(tmp_path, tests=[TWINS])
        go(first, api)
        frozen = freeze(tmp_path / "PLAN.yaml", again=True)
        folder = go(frozen, api)
    checked(frozen, folder)
    page = zipfile.ZipFile(frozen.folder / "CASE.zip").read("report.html").decode()
    assert "Earlier plans that this one replaces</th><td>1<" in page
    assert "Starts under those earlier plans</th><td>1<" in page


def test_a_run_that_is_not_finished_makes_no_case(tmp_path: Path) -> None:
    pairs(tmp_path)
    frozen = plan(tmp_path, tests=[TWINS])
    with mock_api(says({}, lambda number, body: True)) as api, pytest.raises(SpiritsafeError):
        go(frozen, api)
    with pytest.raises(Refused, match="not finished"):
        build_case(frozen, RunFolder.of(frozen.file), tmp_path / "CASE.zip")
    assert not (tmp_path / "CASE.zip").exists()
