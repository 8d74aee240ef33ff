"""Two processes train what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spiritsafe.runs import Run
from spiritsafe.train import StudentConfig, TrainConfig, train
from train_kit import save_tiny, training_run

CONFIG = TrainConfig(epochs=2, lr=3e-3, batch_tokens=120, micro_tokens=80, precision="fp32")

SCRIPT = """
import sys
from pathlib import Path
from spiritsafe.runs import Run
from spiritsafe.train import StudentConfig, TrainConfig, train
config = TrainConfig.model_validate_json(sys.argv[3])
train(Run(Path(sys.argv[1])), config, StudentConfig(layers=3), teacher_source=sys.argv[2])
"""


def log_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.train_log.read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(tmp_path: Path) -> None:
    teacher = str(save_tiny(tmp_path / "teacher"))
    alone, together = training_run(tmp_path / "alone"), training_run(tmp_path / "together")
    train(alone, CONFIG, StudentConfig(layers=3), teacher_source=teacher)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command += [str(together.path), teacher, CONFIG.model_dump_json()]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(log_of(together)) == len(log_of(alone))
    for a, b in zip(log_of(alone), log_of(together), strict=True):
        for key in ("loss", "kd", "ce", "agree", "grad_norm"):
            assert b[key] == pytest.approx(a[key], rel=1e-3), (a["step"], key)
    assert (together.student / "model.safetensors").exists()
