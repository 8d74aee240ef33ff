"""`make proof ARGS=pruning`: behind design/pruning.md. What does a student keep, by depth and by which layers go?

Every cell is an ordinary run under runs/proof/ with the demo's recipe and one thing changed, so the study resumes where
it stopped and pays for its answers once: the first cell collects, the others copy. Results, with the hash of the code
they came from, go to design/pruning-study.json after every cell. `--only sensitivity-24` runs one cell.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.study import ROOT, Lines, code

from spiritsafe.distill import distill, prepare_demo, run_demo
from spiritsafe.progress import Progress
from spiritsafe.report import render_run
from spiritsafe.runs import atomic_write

CELLS = [f"{strategy}-{layers}" for layers in (24, 26, 28, 22, 20) for strategy in ("sensitivity", "even")]
RESULTS = ROOT / "design" / "pruning-study.json"


def main(only: list[str], overrides: list[str], results: Path) -> int:
    unknown = set(only) - set(CELLS)
    if unknown:
        print(f"unknown cell {', '.join(sorted(unknown))}; there are {', '.join(CELLS)}", file=sys.stderr)
        return 2
    progress: Progress = Lines()
    study = json.loads(results.read_text()) if results.exists() else {"study": "pruning", "cells": {}}
    collected = False
    for cell in only or CELLS:
        strategy, layers = cell.split("-")
        changed = [*overrides, f"student.strategy={strategy}", f"student.layers={layers}"]
        out = ROOT / "runs" / "proof" / cell
        progress.say(f"── {cell}")
        if collected:  # the first cell's answers are next door: no server is needed
            job = prepare_demo(out, changed, progress, render_run)
            distill(job)
            run = job.run
        else:
            run = run_demo(out, changed, progress, render_run)
            collected = True
        metrics = json.loads(run.metrics.read_text())
        study["cells"][cell] = {"code": code(), "overrides": overrides} | {
            key: metrics[key] for key in ("base", "student", "recovered", "train", "n_tokens")
        }
        atomic_write(results, json.dumps(study, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="CELL")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    sys.exit(main(arguments.only, arguments.overrides, arguments.results))
