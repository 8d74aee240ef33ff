"""`audit calibrate`: what ships, the controls of a case under fresh secrets, and a slice of the study."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import case_kit as kit
import numpy as np
import pytest
from aiohttp import web
from benchmarks import audit_null_marks as marks
from benchmarks.proof_audit_null import PAGE, table
from coins_kit import at_most, fresh_coins, pair_line, write_lines
from run_kit import go, plan
from typer.testing import CliRunner

from mock_api import Body, completion, mock_api
from spiritsafe.audit import _calibration as calibration
from spiritsafe.audit._case import build_case
from spiritsafe.audit._redraw import calibrate_case
from spiritsafe.cli._main import app
from spiritsafe.errors import BadInput

FREE = {"input_per_mtok": 0, "output_per_mtok": 0}


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["audit", "calibrate", *arguments], catch_exceptions=False)


# What ships


def test_what_ships_is_the_page_and_no_row_is_above_nominal() -> None:
    known = calibration.load_calibration()
    assert not calibration.too_often(known.rows)
    assert all(row.trials >= 200 for row in known.rows if row.independent)
    assert table(known.rows) in PAGE.read_text("utf-8")


def test_the_command_prints_what_ships_and_says_whether_its_judges_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "test": "twins", "name": "likelihood", "redrawn": "coins", "innocents": "9 real models", "trials": 1000,
        "independent": True, "rejected": {"0.01": 9, "0.001": 0}, "smallest": -2.5, "seed": 1, "code": "a" * 40,
        "package": "-", "judges": calibration.judges_hash(), "date": "2026-11-24",
    }  # fmt: skip
    bad = row | {"test": "lineage", "rejected": {"0.01": 60, "0.001": 0}, "judges": "-"}
    rows = tuple(calibration.Row.model_validate(one) for one in (row, bad))
    monkeypatch.setattr(calibration, "load_calibration", lambda: calibration.Calibration(students=7, rows=rows))
    said = run().stdout
    assert "9 at 0.01, 0 at 0.001" in said and "not above nominal" in said and "0.0032" in said
    assert "ABOVE NOMINAL" in said and "equality: was not calibrated" in said
    assert "with the judges of this version" in said and "CHANGED SINCE" in said
    assert "ABOVE" not in run("--test", "twins").stdout
    told = json.loads(run("--json").stdout)
    assert [one["above_nominal"] for one in told["rows"]] == [[], ["0.01"]]
    assert [one["judges_unchanged"] for one in told["rows"]] == [True, False]
    only = run("--test", "equality")
    assert only.exit_code == 0 and only.stdout == "equality: was not calibrated\n"


def test_bad_options() -> None:
    for arguments, says in ((["--test", "taste"], "no such test"), (["--case", "nowhere.zip"], "nowhere.zip")):
        with pytest.raises(BadInput, match=says):
            run(*arguments)


# Somebody's own innocents


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """Twins by text; the suspect repeats what was released, the control writes something of its own. One equality."""
    coins = fresh_coins(5, 30)
    lines = [pair_line(i, f"one story of {i}", f"some other tale {i}", coin) for i, coin in enumerate(coins)]
    write_lines(tmp_path / "pairs.jsonl", lines)

    def released(question: str) -> str:
        line = lines[int(question.split()[-1])] if question.startswith("question") else lines[0]
        return str(line["second" if line["coin"] else "first"]["choices"][0]["message"]["content"])

    async def guilty(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(body, released(body["messages"][-1]["content"])))

    async def innocent(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        question = body["messages"][-1]["content"]
        return web.json_response(
            completion(body, ("a tale of " if len(question) % 2 else "one short story ") + question)
        )

    tests = [{"kind": "twins", "pairs": "pairs.jsonl", "by": "text", "samples": 1},
             {"kind": "equality", "reference": "reference.jsonl", "samples": 2, "permutations": 99, "max_tokens": 8}]  # fmt: skip
    with mock_api(guilty) as api, mock_api(innocent) as other:
        control = {"base_url": other.base_url, "model": "c", "price": FREE}
        frozen = plan(tmp_path, tests=tests, controls={"other": control})
        folder = go(frozen, api)
    judged = build_case(frozen, folder, tmp_path / "CASE.zip")
    assert judged.outcomes[0].log10_p < -6
    return tmp_path / "CASE.zip"


def test_controls_are_tried_under_fresh_coins(case: Path) -> None:
    (row,), notes = calibrate_case(case, 1500)
    assert (row.test, row.redrawn, row.innocents, row.trials) == ("twins", "coins", "other", 1500)
    assert all(at_most(count, 1500, float(level)) for level, count in row.rejected.items())
    assert set(row.rejected) == {"0.01", "0.001"} and row.smallest < -1
    assert notes == ["equality: has no secret that could be drawn again over recorded answers"]
    assert calibrate_case(case, 1500)[0] == [row]
    said = run("--case", str(case), "--trials", "50")
    assert said.exit_code == 0 and "twins: twins" in said.stdout and "equality: has no secret" in said.stdout
    with pytest.raises(BadInput, match="no test canaries"):
        run("--case", str(case), "--test", "canaries")
    with pytest.raises(BadInput, match="nothing to draw again"):
        run("--case", str(case), "--test", "equality")


def test_controls_are_tried_under_fresh_keys(tmp_path: Path) -> None:
    random = np.random.default_rng(3)

    async def innocent(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(body, " ".join(f"w{x}" for x in random.integers(0, 400, 60))))

    with mock_api(innocent) as other:
        control = {"base_url": other.base_url, "model": "c", "price": FREE}
        made = kit.marks(tmp_path, mode="completions", test={"supervised": False}, controls={"other": control})
    (row,), notes = calibrate_case(made.path, 300)
    assert row.redrawn == "keys, over texts of another key" and not notes
    assert all(at_most(count, 300, float(level)) for level, count in row.rejected.items())
    assert row.smallest < -1


def test_a_case_without_controls_is_refused(tmp_path: Path) -> None:
    made = kit.coins(tmp_path)
    with pytest.raises(BadInput, match="no control in it answered"):
        calibrate_case(made.path, 10)
    (tmp_path / "half.zip").write_bytes(made.path.read_bytes()[:500])
    with pytest.raises(BadInput, match=r"half\.zip"):
        calibrate_case(tmp_path / "half.zip", 10)


# A slice of the study


@pytest.mark.parametrize("mode", ["reading", "supervised", "unsupervised"])
def test_a_slice_of_the_study(mode: str) -> None:
    none: Any = None
    found = list(marks.language("gumbel", 1, mode)(none, np.random.default_rng(2), 40))
    for layer in ("epoch", "account"):
        p = [one[layer] for one in found]
        assert at_most(sum(value <= -2 for value in p), len(p), 1e-2)
        assert min(p) < -0.1  # it looks


def test_a_row_above_nominal_is_called_so() -> None:
    row = calibration.Counted(test="twins", name="x", redrawn="coins", innocents="1", independent=True,
                              **calibration.counted([-2.5] * 25 + [-0.1] * 975, (1e-2, 1e-3)))  # fmt: skip
    assert row.rejected == {"0.01": 25, "0.001": 0} and row.smallest == -2.5
    assert calibration.too_often([row]) == [(row, "0.01")]
    assert calibration.too_often([row.model_copy(update={"independent": False})]) == []
    honest = row.model_copy(update=calibration.counted([math.log10((i + 1) / 1000) for i in range(1000)], (1e-2, 1e-3)))
    assert honest.rejected == {"0.01": 10, "0.001": 1} and not calibration.too_often([honest] * 20)
