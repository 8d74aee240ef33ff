"""A slice of the soak (benchmarks/guard_soak.py): every reply in the books once, and the limits' money the ledger's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[2] / "benchmarks" / "guard_soak.py"


def test_three_thousand_requests_at_a_fixed_rate() -> None:
    done = subprocess.run(
        [sys.executable, str(SOAK), "--requests", "3000", "--rate", "300"], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["met"] and done.returncode == 0, found
    assert found["replies"] == 3000 and found["books"]["rows"] == 3021
