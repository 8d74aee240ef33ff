"""The pages on tracing and attacks say what is so; the study behind their tables runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spiritsafe.watermark.attacks import ATTACKS

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "watermark"


def test_every_attack_is_documented() -> None:
    page = (PAGES / "attacks.md").read_text()
    assert [name for name in ATTACKS if f"| `{name}` |" not in page] == []


def test_the_example_in_code_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (PAGES / "attacks.md").read_text(), re.S)
    exec(block, {})


def test_what_trace_prints_is_json_with_the_fields_it_has() -> None:
    from spiritsafe.watermark._trace import Candidate, Traced

    (block,) = re.findall(r"```json\n(.*?)```", (PAGES / "trace.md").read_text(), re.S)
    shown = json.loads(block)
    assert set(shown["candidates"][0]) == set(Candidate.__dataclass_fields__)
    assert set(shown) <= set(Traced.__dataclass_fields__)


@pytest.mark.parametrize("page", ["attacks.md", "trace.md"])
def test_the_study_finds_its_place(page: str) -> None:
    assert (PAGES / page).read_text().count("<!-- study -->\n") == 1


@pytest.mark.slow
def test_a_slice_of_the_study(tmp_path: Path) -> None:
    arguments = ["--documents", "4", "--tokens", "100", "--accounts", "2000", "--results", tmp_path / "r.json"]
    cells = ["none", "delete:50", "homoglyph:10", "homoglyph:10 normalise", "trace"]
    command = [sys.executable, "-m", "benchmarks.proof_watermark_attacks", "--run", tmp_path / "run", *arguments]
    subprocess.run([*map(str, command), "--only", *cells], cwd=ROOT, check=True, timeout=500)
    found = json.loads((tmp_path / "r.json").read_text())
    medians = {name: cell["rows"][0]["median_log10_p"] for name, cell in found["attacks"].items()}
    assert medians["none"] < -6
    assert medians["none"] < medians["delete:50"]
    assert medians["none"] < medians["homoglyph:10"]
    assert medians["homoglyph:10 normalise"] < medians["homoglyph:10"]
    assert medians["homoglyph:10 normalise"] < 0.7 * medians["none"]
    assert found["trace"]["whole"]["wrong"] == 0
    assert found["trace"]["whole"]["right"] >= 2
