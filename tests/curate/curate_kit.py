"""Exchanges and runs for the curation tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spiritsafe.exchanges import write_exchanges
from spiritsafe.records import (
    Exchange,
    FinishReason,
    Message,
    Prompt,
    Reply,
    Request,
    Sampling,
    SparseLogprobs,
    TeacherInfo,
    Usage,
)
from spiritsafe.runs import Run


def exchange(
    prompt: str,
    completion: str,
    *,
    split: str = "train",
    finish: FinishReason = "stop",
    sample: int = 0,
    tokens: int | None = None,
    system: str | None = None,
    k: int = 0,
) -> Exchange:
    turns = ((Message("system", system),) if system else ()) + (Message("user", prompt),)
    asked = Prompt(turns)
    length = len(completion.split()) if tokens is None else tokens
    logprobs = None
    if k:
        rng = np.random.default_rng(length)
        top = np.sort(rng.normal(-5, 1, (length, k)).astype(np.float32))[:, ::-1]
        logprobs = SparseLogprobs(top[:, 0], top, ids=rng.integers(0, 99, (length, k)).astype(np.int32))
    return Exchange(
        request_hash=Request(asked, Sampling()).hash("smollm2"),
        sample=sample,
        prompt=asked,
        reply=Reply(completion, finish, token_ids=tuple(range(length)) if k else None, logprobs=logprobs),
        sampling=Sampling(),
        usage=Usage(5, length),
        usd=0.001,
        teacher=TeacherInfo("smollm2"),
        split=split,  # type: ignore[arg-type]
        terms_id="smollm2",
        terms_version="2.0",
        extra={"note": "kept"},
    )


def run_with(path: Path, exchanges: list[Exchange]) -> Run:
    run = Run.open(path)
    write_exchanges(run.exchanges, exchanges)
    return run
