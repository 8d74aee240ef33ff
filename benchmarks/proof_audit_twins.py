"""`make proof ARGS=audit_twins`: what twin replies show of real students, by likelihood and by text alone.

SmolLM2-135M behind a real guard that twins every request; two accounts, two thirds of the prompts "student", one third
"other". Students are trained by this project's `train` on the first 128 pairs of account "student":

    untrained                a 12-layer prune of the teacher, where the next three begin
    released-2, released-4   the released replies, 2 and 4 epochs
    sealed-4                 the replies that were sealed: it has to go the other way
    copy-3                   the teacher's own weights with low-rank adapters, the released replies, 3 epochs

Each is put the pairs it could have seen (first 128 of "student") and, by likelihood, as many that nobody was trained
on. Everything is kept in runs/proof/audit-twins/, so a second run goes on; results with the code's hash go to
benchmarks/results/audit-twins.json and the docs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.audit_guard import export, guarded
from benchmarks.audit_students import ASKS, exchange, prune
from benchmarks.study import ROOT, SUBJECTS, Teacher, code, publish_between

from spiritsafe import pvalue
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import SubjectConfig, TwinsConfig
from spiritsafe.audit._suspect_weights import WeightsSuspect
from spiritsafe.audit._types import Record
from spiritsafe.audit.tests._committed import read_committed
from spiritsafe.audit.tests.twins import Twins
from spiritsafe.exchanges import write_exchanges
from spiritsafe.runs import Run, atomic_write
from spiritsafe.train import (
    LoraConfig,
    StudentConfig,
    TrainConfig,
    train,
)

RESULTS = ROOT / "benchmarks" / "results" / "audit-twins.json"
RUN = ROOT / "runs" / "proof" / "audit-twins"
PAGE = ROOT / "docs" / "audit" / "twins-and-canaries.md"
STUDENTS = {"untrained": 0, "released-2": 2, "released-4": 4, "sealed-4": 4, "copy-3": 3}
CELLS = (("likelihood", "student"), ("likelihood", "other"), ("text", "student"))
PAIRS, SAMPLES, TOKENS, LAYERS = 128, 4, 48, 12
SIZES = (16, 32, 64, 128)


def main(only: Sequence[str], by_only: Sequence[str], results: Path, run: Path) -> int:
    run.mkdir(parents=True, exist_ok=True)
    study = json.loads(results.read_text()) if results.exists() else {"study": "audit twins", "cells": {}}
    teacher = Teacher()
    collect(teacher, run)
    for student in only or STUDENTS:
        weights = trained(student, teacher, run)
        for by, account in CELLS:
            cell = f"{student}, {by}, {'its' if account == 'student' else 'other'} pairs"
            if cell not in study["cells"] and by in (by_only or by):
                began = time.perf_counter()
                study["cells"][cell] = {"code": code(), **asyncio.run(measure(weights, by, account, student, run))}
                atomic_write(results, json.dumps(study, indent=1) + "\n")
                print(f"{cell}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    if results == RESULTS and not only and not by_only:
        publish_between(PAGE, table(study["cells"]))
    return 0


def collect(teacher: Teacher, run: Path) -> None:
    """Both accounts' requests through the guard, once."""
    if (run / "accounts.json").exists():
        return
    for old in run.glob("guard.*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    prompts = [ask.format(subject) for ask in ASKS[:12] for subject in SUBJECTS]
    with guarded(run, teacher.path) as guard:
        accounts = {}
        for name, mine in (("student", lambda i: i % 3), ("other", lambda i: not i % 3)):
            accounts[name], key = guard.account(name)
            guard.ask(key, [p for i, p in enumerate(prompts) if mine(i)], max_tokens=TOKENS, temperature=1.0)
        export(guard.config)
    atomic_write(run / "accounts.json", json.dumps(accounts))


def twins(run: Path, name: str, by: Any = "likelihood") -> Twins:
    """The account's first pairs, named as a plan names them: by account and time."""
    account = json.loads((run / "accounts.json").read_text())[name]
    times = sorted(row.ts for row in read_committed(run / "ledger.jsonl").twins if row.account == account)
    config = TwinsConfig(
        kind="twins", pairs="pairs", ledger="ledger", account=account, by=by, samples=SAMPLES, max_tokens=TOKENS,
        until=str(times[PAIRS]) if len(times) > PAIRS else None,
    )  # fmt: skip
    return Twins(config, Evidence({"pairs": run / "twins.jsonl", "ledger": run / "ledger.jsonl"}, b""))


def trained(student: str, teacher: Teacher, run: Path) -> str:
    """The student's folder; a stopped training goes on."""
    place = Run.open(run / student)
    if (place.student / "config.json").exists():
        return str(place.student)
    if student == "untrained":
        prune(teacher, LAYERS, place.student)
        return str(place.student)
    pairs = twins(run, "student")._read.pairs.values()
    sealed = student.startswith("sealed")
    rows = [
        {
            "prompt": pair.prompt.messages[0].content,
            "completion": pair.replies[pair.released ^ sealed],
        }
        for pair in pairs
    ]
    write_exchanges(place.curated, [exchange(index, row) for index, row in enumerate(rows)])
    how = TrainConfig(
        objective="sft", epochs=STUDENTS[student], lr=5e-4, batch_tokens=256, micro_tokens=512, checkpoint_every=10
    )
    start = trained("untrained", teacher, run)
    if student.startswith("copy"):
        how, start = how.model_copy(update={"lr": 2e-3, "lora": LoraConfig(r=16, alpha=32)}), str(teacher.path)
    train(place, how, StudentConfig(init=start), teacher_source=None)
    return str(place.student)


async def measure(weights: str, by: str, account: str, student: str, run: Path) -> dict[str, Any]:
    test = twins(run, account, by)
    kept = run / f"answers-{student}-{by}-{account}.json"
    if kept.exists():
        answers = json.loads(kept.read_text())
    else:
        suspect = WeightsSuspect(weights, SubjectConfig(name=student, access="weights"))
        answers, items = {}, test.items()
        try:
            for start in range(0, len(items), 8):
                some = items[start : start + 8]
                answers |= dict(zip([item.id for item in some], await test.ask(suspect, some), strict=True))
        finally:
            await suspect.aclose()
        atomic_write(kept, json.dumps(answers))
    records = [Record(test.name, item, 0.0, 1, {}, got) for item, got in answers.items()]
    outcome = test.judge(records)
    return {
        "pairs": outcome.n_scored,
        "share": outcome.effect["value"],
        "ci95": outcome.effect["ci95"],
        "log10_p": outcome.log10_p,
        "log10_e": test.evalue(records),
        "ties": outcome.hypotheses[0].facts["ties"],
        "median_log10_p": subsets(outcome.n_scored, outcome.hypotheses[0].facts["wins"]),
    }


def subsets(n: int, wins: int) -> dict[str, float]:
    """Median log10 p had only so many of these pairs been asked."""
    rng = np.random.default_rng(0)
    return {
        str(size): float(np.median(pvalue.binomial(size, 0.5, rng.hypergeometric(wins, n - wins, size, 999) * 1.0)))
        for size in SIZES
        if size <= n
    }


def table(cells: dict[str, Any]) -> str:
    sizes = [size for size in SIZES if all(str(size) in c["median_log10_p"] for c in cells.values())]
    lines = [
        "| suspect, score, pairs | pairs | released preferred (95 %) | log10 p | median with "
        + " / ".join(map(str, sizes))
        + " pairs |",
        "|---|---|---|---|---|",
    ]
    for name, cell in cells.items():
        low, high = cell["ci95"]
        few = " / ".join(f"{cell['median_log10_p'][str(size)]:.1f}" for size in sizes)
        share = f"{cell['share']:.0%} ({low:.0%} to {high:.0%})"
        lines.append(f"| {name} | {cell['pairs']} | {share} | {cell['log10_p']:.1f} | {few} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=tuple(STUDENTS))
    parser.add_argument("--by", nargs="+", default=[], choices=("likelihood", "text"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--run", type=Path, default=RUN)
    given = parser.parse_args()
    sys.exit(main(given.only, given.by, given.results, given.run))
