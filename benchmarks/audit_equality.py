"""Model equality beside `model-equality-testing`: the same replies, Hamming kernel, permutations; time a permutation.

25 prompts, ten replies a side, about 250 characters; one thread. Ours permutes within prompts, the peer over all of
them, so the p-values differ; both have to find the change. The peer is no dependency:

    pip install --no-deps --target DIR model-equality-testing==0.0.2      →  --peer-path DIR
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import time
from importlib.metadata import distributions
from typing import Any

import numpy as np

PEER, TARGET = "0.0.2", 100
PROMPTS, REPLIES, WORDS, PERMUTATIONS, THEIRS = 25, 10, 45, 9_999, 30
VOCABULARY = [f"{a}{b}" for a in ("lo", "mi", "sa", "te", "ru") for b in ("ng", "x", "rter", "pe", "no", "")]


def replies(rng: np.random.Generator, change: float) -> list[list[str]]:
    """For each prompt: mostly its own course of words, some drawn afresh."""
    out = []
    for p in range(PROMPTS):
        course = np.random.default_rng(p).integers(0, len(VOCABULARY), WORDS)
        drawn = rng.integers(0, len(VOCABULARY), (REPLIES, WORDS))
        own = rng.random((REPLIES, WORDS)) > 0.1 + change
        out.append([" ".join(VOCABULARY[i] for i in row) for row in np.where(own, course, drawn)])
    return out


def ours(before: list[list[str]], now: list[list[str]]) -> tuple[float, float]:
    from spiritsafe.audit.tests.equality import discrepancies, distances

    began = time.perf_counter()
    statistic = np.zeros(1 + PERMUTATIONS)
    for p, (a, b) in enumerate(zip(before, now, strict=True)):
        statistic += discrepancies(distances(a + b), len(a), PERMUTATIONS, p.to_bytes(8, "big"))
    p_value = (1 + int((statistic[1:] >= statistic[0] - 1e-9).sum())) / (1 + PERMUTATIONS)
    return p_value, (time.perf_counter() - began) / PERMUTATIONS


def theirs(before: list[list[str]], now: list[list[str]]) -> tuple[float, float]:
    from model_equality_testing.algorithm import run_two_sample_test
    from model_equality_testing.distribution import CompletionSample
    from model_equality_testing.utils import tokenize_unicode

    codes = tokenize_unicode([text for side in (before, now) for some in side for text in some])
    prompts = np.repeat(np.arange(PROMPTS), REPLIES)
    first, second = (CompletionSample(prompts, half, PROMPTS) for half in np.split(codes, 2))
    began = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        p_value, _ = run_two_sample_test(first, second, stat_type="mmd_hamming", b=THEIRS)
    return p_value, (time.perf_counter() - began) / THEIRS


def main(path: str | None, rounds: int) -> int:
    if path is None:
        print("audit_equality: skipped, --peer-path says where model-equality-testing is", file=sys.stderr)
        return 0
    import torch

    torch.set_num_threads(1)
    version = next((d.version for d in distributions(name="model-equality-testing", path=[path])), None)
    assert version == PEER, f"{path} holds model-equality-testing {version}, but the numbers are for {PEER}"
    sys.path.append(path)
    rng = np.random.default_rng(0)
    p_values: dict[str, list[float]] = {"ours, same": [], "ours, changed": [], "peer, same": [], "peer, changed": []}
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        before = replies(rng, 0.0)
        for name, now in (("same", replies(rng, 0.0)), ("changed", replies(rng, 0.15))):
            for side, run in (("ours", ours), ("peer", theirs)):
                p_value, seconds = run(before, now)
                p_values[f"{side}, {name}"].append(p_value)
                times[side].append(seconds)
    assert max(p_values["ours, changed"]) < 0.01, p_values
    assert max(p_values["peer, changed"]) < 0.05, p_values
    ratio = statistics.median(times["peer"]) / statistics.median(times["ours"])
    report: dict[str, Any] = {
        "benchmark": "audit_equality",
        "peer": f"model-equality-testing {PEER}",
        "us_per_permutation": {side: 1e6 * statistics.median(values) for side, values in times.items()},
        "p": {name: statistics.median(values) for name, values in p_values.items()},
        "ratio": ratio,
        "targets": {"ratio": f">= {TARGET}"},
        "met": ratio >= TARGET,
        "load": round(os.getloadavg()[0], 1),
        "rounds": rounds,
    }
    print(json.dumps(report))
    return 0 if report["met"] else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-path", help=f"where model-equality-testing {PEER} was installed")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sys.exit(main(options.peer_path, options.rounds))
