"""`make proof ARGS=audit_radioactivity`: how much of a teacher's mark a real student carries on, in reading mode.

SmolLM2-135M writes 512 replies of 48 tokens, marked with KGW (k = 1, δ = 3, T = 1, no surprise spent first). Students
are 12-layer prunes of it, trained by this project's `train` on these replies. Each is given the replies to read
(trained), and 256 others that it never saw, marked with the same key (fresh). Suspects:

    trained-1, trained-2, trained-3   one, two, three epochs
    trained-0                         the prune itself
    teacher                           the teacher's own weights, unmarked: an innocent that predicts the texts well

Everything is kept in runs/proof/audit-radioactivity/, so a second run goes on; results with the code's hash go to
benchmarks/results/audit-radioactivity.json.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.study import ROOT, SUBJECTS, Teacher, code

from spiritsafe.runs import atomic_write

RESULTS = ROOT / "benchmarks" / "results" / "audit-radioactivity.json"
RUN = ROOT / "runs" / "proof" / "audit-radioactivity"
ASKS = (
    "Describe {} in a few sentences.", "Tell a short story about {}.", "Explain {} to a child.",
    "Give three facts about {}.", "Write a postcard about {}.", "What would surprise people about {}?",
    "Write the first lines of an essay on {}.", "Name a common mistake about {} and correct it.",
    "Write a riddle about {}.", "Give a piece of advice that has to do with {}.", "Write a diary entry about {}.",
    "Summarise what is known about {}.", "Argue against {}.", "Write a poem about {}.", "Ask five questions about {}.",
    "Write a letter about {}.", "Describe a picture of {}.", "Write a news report about {}.", "Plan a lesson on {}.",
    "Write a scene of a play about {}.", "Recall a memory of {}.", "Make a list that has to do with {}.",
    "Explain why {} matters.", "Write a warning about {}.",
)  # fmt: skip
TRAINED, TOKENS, LAYERS, BATCH = 512, 48, 12, 64
CELLS = tuple(
    f"{suspect}, {which}" for suspect in ("trained-1", "trained-2", "trained-3", "trained-0", "teacher")
    for which in ("trained", "fresh")
)  # fmt: skip
MARKING = {
    "scheme": "kgw", "context_width": 1, "delta": 3.0, "account_share": 0.0, "surprise_bits": 0.0,
}  # fmt: skip


def teach(teacher: Teacher, run: Path, count: int) -> None:
    """`count` marked replies with their token ids, in the prompts' order; goes on where it stopped."""
    from spiritsafe.keys import load_keys, new_keys
    from spiritsafe.records import Sampling
    from spiritsafe.teachers import Engine, GenerateJob
    from spiritsafe.watermark import Markers

    keys = run / "keys.json"
    markers = Markers(load_keys(keys) if keys.exists() else new_keys(keys, marking=MARKING, epoch="2026-11"))
    prompts = [ask.format(subject) for ask in ASKS for subject in SUBJECTS][:count]
    file = run / "texts.jsonl"
    rows = file.read_text().splitlines() if file.exists() else []
    engine = None if len(rows) >= count else Engine(teacher.weights, BATCH)
    while engine is not None and len(rows) < len(prompts):
        some = prompts[len(rows) : len(rows) + BATCH]
        jobs = []
        for at, prompt in enumerate(some, len(rows)):
            marker = markers.marker(markers.key_id(), np.random.default_rng(at), temperature=1.0)
            jobs.append(GenerateJob(teacher.prompt(prompt), Sampling(max_tokens=TOKENS), processor=marker))
        for prompt, job, reply in zip(some, jobs, engine.generate(jobs), strict=True):
            row = {"prompt": prompt, "completion": reply.text, "tokens": reply.token_ids}
            rows.append(json.dumps(row | {"prompt_tokens": job.prompt_ids}))
        atomic_write(file, "\n".join(rows) + "\n")
        print(f"{len(rows)} of {len(prompts)} replies", file=sys.stderr, flush=True)


def trained(epochs: int, teacher: Teacher, run: Path, count: int) -> str:
    """The folder of a student of the first `count` replies; 0 epochs: the prune itself."""
    from spiritsafe.exchanges import write_exchanges
    from spiritsafe.records import Exchange, Message, Prompt, Reply, Sampling, TeacherInfo, Usage
    from spiritsafe.runs import Run
    from spiritsafe.train import StudentConfig, TrainConfig, init_student, load_source, save_student, train

    place = Run.open(run / f"trained-{epochs}")
    config = StudentConfig(init="prune", layers=LAYERS, strategy="even")
    if (place.student / "config.json").exists():
        return str(place.student)
    if not epochs:
        import torch

        fresh = init_student(config, load_source(config, str(teacher.path)))
        save_student(fresh.model, fresh.tokenizer, place.student, torch.float32)
        return str(place.student)
    exchanges = [
        Exchange(
            request_hash=hashlib.sha256(str(index).encode()).hexdigest(),
            sample=0,
            prompt=Prompt((Message("user", row["prompt"]),)),
            reply=Reply(row["completion"], "length"),
            sampling=Sampling(max_tokens=TOKENS),
            usage=Usage(0, 0),
            usd=0.0,
            teacher=TeacherInfo("smollm2"),
        )
        for index, row in enumerate(texts_of(run)[:count])
    ]
    write_exchanges(place.curated, exchanges)
    how = TrainConfig(objective="sft", epochs=epochs, lr=5e-4, batch_tokens=1024, checkpoint_every=10)
    train(place, how, config, teacher_source=str(teacher.path))
    return str(place.student)


def texts_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "texts.jsonl").read_text().splitlines()]


def test_of(teacher: Teacher, run: Path, which: str, count: int) -> Any:
    """The test on the replies that students were trained on, or on the others; with keys opened from a commitment."""
    from spiritsafe.audit._evidence import Evidence
    from spiritsafe.audit._plan import RadioactivityConfig
    from spiritsafe.audit.tests.radioactivity import Radioactivity
    from spiritsafe.keys import commit_keys, open_leaf

    rows = texts_of(run)
    file = run / f"texts-{which}.jsonl"
    atomic_write(
        file, "".join(json.dumps(row) + "\n" for row in (rows[:count] if which == "trained" else rows[count:]))
    )
    keys = run / "opened.json"
    keys.write_bytes((run / "keys.json").read_bytes())  # opening notes it in the file, and ends the epoch
    keys.chmod(0o600)
    commitment = commit_keys(keys, slots=1)
    leaf = open_leaf(keys, "2026-11", "epoch", commitment=commitment)
    config = RadioactivityConfig(
        kind="radioactivity", texts="texts", tokenizer="tokenizer", marking=MARKING, supervised=which == "trained"
    )
    inputs = {"texts": file, "tokenizer": teacher.path}
    return Radioactivity(config, Evidence(inputs, b"proof", (leaf,), commitment, commitment.committed["epoch"]))


async def measure(weights: str, test: Any, kept: Path) -> dict[str, Any]:
    """What the test says, how long reading and judging took."""
    from spiritsafe.audit._plan import SubjectConfig
    from spiritsafe.audit._suspect_weights import WeightsSuspect
    from spiritsafe.audit._types import Record

    items, began = test.items(), time.perf_counter()
    answers = json.loads(kept.read_text()) if kept.exists() else {}
    if not answers:
        suspect = WeightsSuspect(weights, SubjectConfig(name="student", access="weights"))
        try:
            for start in range(0, len(items), suspect.batch):
                some = items[start : start + suspect.batch]
                said = await suspect.read([item.asked["ids"][:-1] for item in some])
                for item, row in zip(some, said, strict=True):
                    answers[item.id] = {"argmax": row[item.asked["first"] - 1 :]}
        finally:
            await suspect.aclose()
        atomic_write(kept, json.dumps(answers))
    read_s = time.perf_counter() - began
    records = [Record(test.name, item.id, 0.0, 1, item.asked, answers[item.id]) for item in items]
    began = time.perf_counter()
    outcome = test.judge(records)
    facts = outcome.hypotheses[0].facts
    return {
        "texts": len(items),
        "pairs": outcome.n_scored,
        "green": outcome.effect["value"],
        "ci95": outcome.effect["ci95"],
        "log10_p": outcome.log10_p,
        "log10_tail": facts["log10_tail"],
        "rank": outcome.hypotheses[0].rank,
        "read_s": read_s,
        "judge_s": time.perf_counter() - began,
    }


def main(cells: Sequence[str], count: int, run: Path, results: Path) -> int:
    run.mkdir(parents=True, exist_ok=True)
    teacher = Teacher()
    teach(teacher, run, count + count // 2)
    study = json.loads(results.read_text()) if results.exists() else {"study": "audit radioactivity", "cells": {}}
    for name in cells:
        suspect, which = name.split(", ")
        weights = str(teacher.path) if suspect == "teacher" else trained(int(suspect[-1]), teacher, run, count)
        kept = run / f"answers-{suspect}-{which}.json"
        study["cells"][name] = {
            "code": code(),
            "trained_on": count,
            **asyncio.run(measure(weights, test_of(teacher, run, which, count), kept)),
        }
        atomic_write(results, json.dumps(study, indent=1) + "\n")
        print(name, study["cells"][name], file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=CELLS, choices=CELLS)
    parser.add_argument("--texts", type=int, default=TRAINED, help="replies that students are trained on")
    parser.add_argument("--run", type=Path, default=RUN)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    sys.exit(main(given.only, given.texts, given.run, given.results))
