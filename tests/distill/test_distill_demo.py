"""`spiritsafe demo` with the real teacher, cut to CI's size; the full-size figures are in the README."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_distils_the_real_teacher_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    small = [
        *("--set", "prompts.limit=64", "--set", "collect.max_tokens=24", "--set", "train.epochs=1"),
        *("--set", "evaluate.samples=2", "--set", "evaluate.speed_prompts=4", "--set", "evaluate.speed_tokens=16"),
    ]
    command = [sys.executable, "-m", "spiritsafe", "demo", "--out", "run", "--json", *small]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert first.returncode == 0, first.stderr
    metrics = json.loads(first.stdout)
    student, untrained = metrics["student"], metrics["best_untrained"]
    # Forty short replies already improve on every untrained prune of this size.
    assert student["kl"] < untrained["kl"]
    assert student["nll"] < untrained["nll"]
    assert student["top1_agreement"] > 0.55
    assert student["params"] < metrics["teacher"]["params"]
    assert 0 < metrics["collected"]["usd"] <= metrics["collected"]["budget_usd"]

    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "starting the teacher" not in again.stderr
    assert again.stderr.count("already done") == 6
    assert json.loads(again.stdout) == metrics
