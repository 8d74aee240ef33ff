"""A run directory with everything a report can show, written by hand."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from spiritsafe.runs import Run

METRICS: dict[str, Any] = {
    "teacher": {"nll": 0.612, "params": 134_515_008, "layers": 30, "tok_per_s": 96.4, "usd_per_mtok": 0.60},
    "base": {"nll": 3.91, "kl": 2.86, "top1_agreement": 0.27, "params": 120_355_000, "layers": 26},
    "student": {
        "nll": 1.163,
        "nll_gap": 0.551,
        "nll_gap_ci95": [0.49, 0.62],
        "kl": 0.512,
        "kl_ci95": [0.46, 0.57],
        "top1_agreement": 0.671,
        "top1_agreement_ci95": [0.64, 0.70],
        "params": 120_355_000,
        "layers": 26,
        "tok_per_s": 110.2,
    },
    "best_untrained": {"layers": 26, "params": 120_355_000, "nll": 3.4, "kl": 2.5, "top1_agreement": 0.31},
    "recovered": {"metric": "nll", "value": 0.833, "ci95": [0.807, 0.856]},
    "collected": {"exchanges": 356, "tokens_in": 21_412, "tokens_out": 11_903, "usd": 0.01035, "budget_usd": 0.05},
    "curated": {"kept": 338, "dropped": {"near_dedup": 6, "drop_truncated": 12}},
    "train": {"tokens": 21_300, "seconds": 214.0, "peak_rss_mb": 2140.0},
    "n_exchanges": 34,
    "n_prompts": 34,
    "n_tokens": 1_412,
    "nll_unit": "token",
    "kl_kind": "exact",
    "speed": {"ratio": 1.143, "batch": 8},
    "samples": {"temperature": 0.7, "seed": 0},
}

SAMPLES = [
    {
        "prompt": "In one sentence: what does Python's textwrap.dedent do?",
        "teacher": "It removes any common leading whitespace from every line in a block of text, so that the text lines up with the left edge of the display.",
        "student": "It removes the leading whitespace from each line in a text, so that it is aligned with the left edge of the text.",
        "base": "It’s a text text of the text of a text, which is the line of line, which the which the line",
    },
    {
        "prompt": "Name one good use of functools.lru_cache.",
        "teacher": "Caching the results of an expensive recursive function, such as Fibonacci numbers.",
        "student": "Caching the results of a function that is called many times with the same arguments.",
        "base": "The use the use of a function the function cache the the",
    },
]


def write_run(path: Path, *, override: str = "") -> Run:
    run = Run.open(path)
    rng = random.Random(7)
    run.metrics.write_text(json.dumps(METRICS))
    run.samples.write_text(json.dumps(SAMPLES))
    rows = [
        {"step": i, "loss": 0.62 + 3.3 * math.exp(-i / 26) + rng.gauss(0, 0.06 + 0.1 * math.exp(-i / 30)), "lr": 2e-4}
        for i in range(1, 161)
    ]
    run.train_log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curation = {
        "kept": 338,
        "dropped": {
            "near_dedup": {
                "count": 6,
                "examples": [
                    {
                        "id": "0a1b-0",
                        "why": "0.91 alike with 77aa-0",
                        "prompt": "What does json.dumps do?",
                        "completion": "It turns objects into JSON strings.",
                    }
                ],
            },
            "drop_truncated": {
                "count": 12,
                "examples": [
                    {"id": "9c9c-0", "why": "", "prompt": "What is heapq for?", "completion": "The heapq module is an"}
                ],
            },
        },
    }
    run.curation.write_text(json.dumps(curation))
    decision = {
        "status": "allowed_with_conditions",
        "reason": "Apache-2.0 sets no limit on outputs; keep its notices with the student.",
        "entries": [{"id": "apache-2.0", "name": "Apache License 2.0", "version": "1", "checked": "2026-11-01"}],
    }
    run.update_manifest(
        name="stdlib-explainer",
        created="2026-11-14T09:30:00+00:00",
        recipe={
            "name": "stdlib-explainer",
            "teacher": {
                "model": "smollm2-135m",
                "base_url": "loopback:8001/v1",
                "price": {
                    "input_per_mtok": "0.15",
                    "output_per_mtok": "0.60",
                    "cached_per_mtok": None,
                    "batch_discount": "0",
                },
            },
            "prompts": {"source": "python-stdlib", "limit": 400},
            "student": {"init": "prune", "layers": 26},
            "train": {"objective": "topk", "epochs": 2},
        },
        versions={"python": "3.11.9", "spiritsafe": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        seeds={"recipe": 0},
        terms=[{"stage": stage, **decision, "accepted": override or None} for stage in ("collect", "train", "export")],
        stages={
            "collect": {
                "outputs": {"exchanges": {"path": "exchanges.parquet", "sha256": "9f2c" * 16}},
                "seconds": 164.2,
                "summary": {
                    **METRICS["collected"],
                    "usd_by": {"answered": 0.0098, "retried": 0.0004, "lost": 0.00015},
                    "bad": {"truncated": 12},
                    "reused": 0,
                },
            },
            "train": {
                "outputs": {"weights": {"path": "student/model.safetensors", "sha256": "41ab" * 16}},
                "seconds": 219.9,
                "summary": {**METRICS["train"], "kept_layers": [*range(26)], "final_loss": 0.61},
            },
        },
    )
    return run
