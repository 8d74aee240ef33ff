"""`make proof`: the long studies in turn, each resumable. `make proof ARGS="watermark_null"` runs some of them.

Options go to a study run by itself: `.venv/bin/python -m benchmarks.proof_watermark_null --help`.
"""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    "watermark_null",
    "watermark_power",
    "watermark_attacks",
    "pruning",
    "audit_twins",
    "audit_power",
    "audit_null",
    "audit_story",
)


def main(names: list[str]) -> int:
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"unknown study {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    return max(
        subprocess.run([sys.executable, "-m", f"benchmarks.proof_{name}"], check=False).returncode
        for name in names or NAMES
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
