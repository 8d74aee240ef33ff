"""`make bench`: every benchmark in turn, one JSON line each. `make bench ARGS="loss engine"` runs some of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "audit",
    "audit_equality",
    "audit_textseal",
    "collector",
    "engine",
    "guard",
    "guard_soak",
    "loss",
    "train_step",
    "watermark_hf",
    "watermark_engines",
    "watermark_trace",
    "watermark_text",
)


def main(names: list[str]) -> int:
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    # A process each: peak memory and thread pools of one must not colour the next.
    return max(subprocess.run([sys.executable, str(HERE / f"{name}.py")]).returncode for name in names or NAMES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
