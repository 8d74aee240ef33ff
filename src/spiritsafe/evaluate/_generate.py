"""What models say and how fast they say it, all through one engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spiritsafe.records import Exchange, Sampling
from spiritsafe.teachers import Engine, GenerateJob
from spiritsafe.tokens import prompt_ids

if TYPE_CHECKING:
    from spiritsafe.teachers import Weights

__all__ = ["SPEED_BATCH", "answers", "distinct_prompts", "time_both"]

SPEED_BATCH = 8


def distinct_prompts(exchanges: Sequence[Exchange], n: int) -> list[Exchange]:
    """n exchanges with different prompts, spread evenly over the held-out set rather than chosen."""
    unique = list({e.prompt.id: e for e in reversed(exchanges)}.values())[::-1]
    n = min(n, len(unique))
    return [unique[i * len(unique) // n] for i in range(n)]


def answers(weights: Weights, exchanges: Sequence[Exchange], seed: int) -> list[str]:
    """The model's answers to the exchanges' prompts, sampled as the teacher's were collected."""
    jobs = []
    for index, e in enumerate(exchanges):
        sampling = replace(e.sampling, seed=seed, logprobs=0)
        jobs.append(GenerateJob(tuple(prompt_ids(weights.tokenizer, e.prompt.messages)), sampling, index=index))
    return [generation.text for generation in Engine(weights).generate(jobs)]


def time_both(
    teacher: Weights, student: Weights, exchanges: Sequence[Exchange], new_tokens: int, repeats: int
) -> dict[str, Any]:
    """Generated tokens per second of both on the same prompts, every answer exactly `new_tokens` long.

    Bursts go teacher, student, student, teacher, so that a machine that slows down favours neither. Other work on the
    machine only ever slows a burst, so each model's fastest counts; `runs` holds all of them. A short burst of each
    comes first and is not counted.
    """
    runs: dict[str, list[float]] = {"teacher": [], "student": []}
    models = {"teacher": teacher, "student": student}
    for name in models:
        _tokens_per_second(models[name], exchanges[:SPEED_BATCH], 2)
    for name in ("teacher", "student", "student", "teacher") * repeats:
        runs[name].append(_tokens_per_second(models[name], exchanges, new_tokens))
    speeds = {name: max(values) for name, values in runs.items()}
    return {
        "ratio": speeds["student"] / speeds["teacher"],
        "teacher_tok_per_s": speeds["teacher"],
        "student_tok_per_s": speeds["student"],
        "runs": runs,
        "prompts": len(exchanges),
        "new_tokens": new_tokens,
        "batch": SPEED_BATCH,
        "dtype": str(student.model.dtype).removeprefix("torch."),
        "device": str(student.device),
    }


def _tokens_per_second(weights: Weights, exchanges: Sequence[Exchange], new_tokens: int) -> float:
    sampling = Sampling(max_tokens=new_tokens, temperature=1.0, seed=0)
    jobs = [
        GenerateJob(tuple(prompt_ids(weights.tokenizer, e.prompt.messages)), sampling, index, ignore_eos=True)
        for index, e in enumerate(exchanges)
    ]
    engine = Engine(weights, max_batch=SPEED_BATCH)
    started = time.perf_counter()
    done = engine.generate(jobs)
    return sum(len(g.token_ids) for g in done) / (time.perf_counter() - started)
