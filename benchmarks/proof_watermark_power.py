"""`make proof ARGS=watermark_power`: what 200 tokens of the 135M teacher carry, and what marking costs in quality.

A cell is a scheme at a temperature: documents of 200 tokens, each under its own account, written by the engine in one
batch. Noted: log10 p of the epoch layer alone at 100 and 200 tokens, the teacher's own NLL of what was written (logits
at T = 1), repetition, and for eight replies to one prompt how many differ and how long a prefix they share. Text is
kept in runs/proof/, results with the code's hash go to benchmarks/results/watermark-power.json and the docs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from benchmarks.study import ROOT, SUBJECTS, Teacher, code, publish_between

from spiritsafe.keys import load_keys, new_keys
from spiritsafe.records import Sampling
from spiritsafe.runs import atomic_write
from spiritsafe.teachers import Engine, GenerateJob
from spiritsafe.watermark._marker import Markers
from spiritsafe.watermark._native import NativeDetector

RESULTS = ROOT / "benchmarks" / "results" / "watermark-power.json"
RUN = ROOT / "runs" / "proof" / "watermark-power"
SCHEMES = ("unmarked", "gumbel-dual", "kgw", "synthid")
TEMPERATURES = (1.0, 0.7)
PROMPTS, REPLIES = 4, 8


def main(count: int, tokens: int, only: list[str], results: Path, run: Path) -> int:
    run.mkdir(parents=True, exist_ok=True)
    study = json.loads(results.read_text()) if results.exists() else {"study": "watermark power", "cells": {}}
    teacher = Teacher()
    for scheme in only or SCHEMES:
        for temperature in TEMPERATURES:
            cell = f"{scheme} T={temperature:g}"
            if cell in study["cells"]:
                continue
            began = time.perf_counter()
            study["cells"][cell] = {"code": code(), **measure(teacher, scheme, temperature, count, tokens, run)}
            atomic_write(results, json.dumps(study, indent=1) + "\n")
            print(f"{cell}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    if results == RESULTS and not only:
        publish_between(ROOT / "docs" / "watermark" / "README.md", table(study["cells"], tokens))
    return 0


def measure(teacher: Teacher, scheme: str, temperature: float, count: int, tokens: int, run: Path) -> dict[str, Any]:
    keys_file = run / f"{scheme}.json"
    keys = None
    if scheme != "unmarked":
        keys = load_keys(keys_file) if keys_file.exists() else new_keys(keys_file, marking={"scheme": scheme})
    markers = Markers(keys) if keys else None
    stop = list(teacher.weights.eos_ids)

    def job(prompt: str, slot: int, seed: int) -> GenerateJob:
        marker = None
        if markers and keys:
            marker = markers.marker(
                keys.key_id(keys.current, slot), np.random.default_rng(seed), temperature=temperature
            )

        def shaped(prompt_ids: Sequence[int], so_far: Sequence[int], logits_V: Any) -> Any:
            logits_V = logits_V.clone()
            logits_V[stop] = -math.inf
            return marker(prompt_ids, so_far, logits_V) if marker else logits_V

        sampling = Sampling(max_tokens=tokens, temperature=temperature, seed=seed, logprobs=1)
        return GenerateJob(teacher.prompt(prompt), sampling, processor=shaped)

    essays = [job(f"Write a long, detailed essay about {SUBJECTS[n % len(SUBJECTS)]}.", n + 1, n) for n in range(count)]
    again = [
        job(f"Describe {SUBJECTS[p]} in three sentences.", 1, 1000 + p * REPLIES + r)
        for p in range(PROMPTS)
        for r in range(REPLIES)
    ]
    done = Engine(teacher.weights).generate(essays)
    short = Engine(teacher.weights).generate(
        [GenerateJob(j.prompt_ids, _shorter(j.sampling, 60), processor=j.processor) for j in again]
    )
    found: dict[str, Any] = {}
    if keys:
        detector = NativeDetector(keys)
        for length in (tokens // 2, tokens):
            rows = [_p(detector, g.token_ids[:length]) for g in done]
            p = sorted(log10_p for _, log10_p in rows)
            found[str(length)] = {
                "median_log10_p": median(p),
                "quartiles": [p[len(p) // 4], p[3 * len(p) // 4]],
                "median_n_scored": median(n for n, _ in rows),
                "power_1e-6": mean(q <= -6 for q in p),
            }
    atomic_write(run / f"{scheme}-{temperature:g}.json", json.dumps([list(g.token_ids) for g in done]))
    groups = [[g.token_ids for g in short[p * REPLIES : (p + 1) * REPLIES]] for p in range(PROMPTS)]
    return {
        "documents": count,
        "epoch_layer": found,
        "nll": mean(-float(v) for g in done if g.logprobs is not None for v in g.logprobs.chosen),
        "repeated_4grams": mean(1 - len(set(_grams(g.token_ids))) / len(_grams(g.token_ids)) for g in done),
        "distinct_of_8": mean(len(set(group)) for group in groups),
        "common_prefix": mean(_shared(a, b) for group in groups for a, b in combinations(group, 2)),
    }


def _shorter(sampling: Sampling, tokens: int) -> Sampling:
    return Sampling(max_tokens=tokens, temperature=sampling.temperature, seed=sampling.seed)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the prefix two replies have in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _grams(ids: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]


def _p(detector: NativeDetector, ids: Sequence[int]) -> tuple[int, float]:
    (n,), (total,) = detector.totals_batch(np.asarray(ids, np.uint32), np.array([0, len(ids)]), 0)
    return int(n), detector.log10_tail(int(n), float(total))


def table(cells: dict[str, Any], tokens: int) -> str:
    lines = [
        f"| scheme, temperature | median log10 p, {tokens // 2} tokens | {tokens} tokens | found at 1e-6 | NLL a token"
        " | repeated 4-grams | distinct of 8 | common prefix |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in cells.items():
        half, whole = (cell["epoch_layer"].get(str(n)) for n in (tokens // 2, tokens))
        marks = ["–"] * 3
        if half and whole:
            marks = [f"{half['median_log10_p']:.1f}", f"{whole['median_log10_p']:.1f}", f"{whole['power_1e-6']:.0%}"]
        cost = [f"{cell['nll']:.2f}", f"{cell['repeated_4grams']:.1%}"]
        variety = [f"{cell['distinct_of_8']:.1f}", f"{cell['common_prefix']:.1f}"]
        lines.append("| " + " | ".join([name, *marks, *cost, *variety]) + " |")
    count = max(cell["documents"] for cell in cells.values())
    lines += [
        "",
        f"{count} documents a cell, written by SmolLM2-135M-Instruct; epoch layer alone (half of the contexts); the"
        " common prefix is in tokens, between replies of 60 tokens to one prompt.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--only", nargs="+", default=[], choices=SCHEMES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--run", type=Path, default=RUN)
    given = parser.parse_args()
    sys.exit(main(given.documents, given.tokens, given.only, given.results, given.run))
