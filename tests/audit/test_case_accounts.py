"""Many accounts' keys opened at once: the one whose replies were learnt is named, by both verifiers' arithmetic."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import case_kit as kit
import pytest

from spiritsafe.audit._verify import verify_case
from spiritsafe.report._case import render_case


@pytest.mark.parametrize("share", [0.9, 0.0])
def test_of_all_committed_slots_the_right_one_is_named(tmp_path: Path, share: float) -> None:
    made = kit.marks(tmp_path, share=share, slots=200, slot=3, opened=range(200), render=render_case)
    named = ["account slot 3, epoch 2026-10 (gumbel-dual)"] if share else []
    with zipfile.ZipFile(made.path) as case:
        results, page = json.loads(case.read("results.json")), case.read("report.html").decode()
    accounts = [one for one in results["tests"][0]["hypotheses"] if one["facts"]["layer"] == "account"]
    assert [one["facts"]["slot"] for one in accounts] == list(range(200))
    assert {one["facts"]["family"] for one in accounts} == {200}
    assert results["finding"]["accounts"] == named
    assert len(re.findall(r"<th[^>]*><span>account slot", page)) == 20
    assert "180 other account slots" in page
    assert ("Whose replies: account slot 3" in page) == bool(named)

    found = verify_case(made.path)
    assert found.ok, found.reasons
    assert list(found.finding.accounts) == named

    said = kit.second(made.path)
    assert said.returncode == 0, said.stdout + said.stderr
