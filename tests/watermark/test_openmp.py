"""numba keeps to OMP_NUM_THREADS, so that torch keeps its threads."""

from __future__ import annotations

import os
import subprocess
import sys

SCORE = """
import torch
import numpy as np
torch.get_num_threads()
from spiritsafe.watermark import Marking, NativeDetector
detector = NativeDetector.of_keys(Marking(scheme="kgw", account_share=0.0), [("e", bytes(16), bytes(16))])
reading = detector.read(np.arange(3000, dtype=np.uint32), 0)
detector.decoy_totals(reading, 0, b"seed", 10)
import numba
print(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
"""


def threads_after_scoring(**environment: str) -> list[int]:
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    run = subprocess.run(
        [sys.executable, "-c", SCORE], env=kept | environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return [int(number) for number in run.stdout.split()]


def test_scoring_leaves_torch_the_threads_it_was_given() -> None:
    assert threads_after_scoring(OMP_NUM_THREADS="1") == [1, 1]


def test_what_is_said_of_numba_itself_counts_and_without_either_all_cores_do() -> None:
    assert threads_after_scoring(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="2")[1] == 2
    assert threads_after_scoring(OMP_NUM_THREADS="4096")[1] == threads_after_scoring()[1]
