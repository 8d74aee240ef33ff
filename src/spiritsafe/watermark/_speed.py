"""How fast this machine reads, marks and traces: what a user plans a corpus or a deployment with.

Figures of one machine at one moment; comparisons with other software are in the repository's benchmarks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from spiritsafe.keys import KeySet, new_keys
from spiritsafe.progress import Progress, Silent

__all__ = ["SCHEMES", "measure"]

SCHEMES = ("gumbel-dual", "kgw", "synthid")
_VOCAB, _BATCH = 49_152, 8
_DOCUMENTS = 2_048  # tokens each


def measure(
    *, tokens: int = 2_000_000, accounts: int = 1_000_000, rounds: int = 5, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """A row a scheme, medians of `rounds`: tokens a second from ids to per-document sums with exact deduplication,
    milliseconds a marking step (8 replies, vocabulary 49,152), seconds to score all accounts on 300 tokens."""
    say = progress or Silent()
    rows = []
    with TemporaryDirectory() as folder:
        for number, scheme in enumerate(SCHEMES):
            keys = new_keys(Path(folder) / f"{scheme}.json", marking={"scheme": scheme})
            rows.append(
                {
                    "scheme": scheme,
                    "read_tokens_per_s": round(_reading(keys, tokens, rounds)),
                    "mark_ms_per_step": round(_marking(keys, rounds), 3),
                    "trace_s": round(_tracing(keys, accounts, rounds), 3),
                }
            )
            say.update("schemes", number + 1, len(SCHEMES))
    return rows


def _reading(keys: KeySet, tokens: int, rounds: int) -> float:
    from spiritsafe.watermark._native import NativeDetector

    detector = NativeDetector(keys)
    ids = (np.random.default_rng(0).zipf(1.2, tokens) % _VOCAB).astype(np.uint32)
    offsets = np.append(np.arange(0, tokens, _DOCUMENTS), tokens)
    return tokens / _median(lambda: detector.totals_batch(ids, offsets, 0), rounds)


def _marking(keys: KeySet, rounds: int) -> float:
    import torch

    from spiritsafe.watermark._marker import Markers, choose_marked

    made = Markers(keys)
    random = np.random.default_rng(0)
    markers = [made.marker(made.key_id(), np.random.default_rng(row)) for row in range(_BATCH)]
    for marker in markers:
        marker.spend(2.0**-64)  # past the unmarked beginning
    logits_BV = torch.from_numpy(random.normal(0, 2, (_BATCH, _VOCAB)).astype(np.float32))
    steps = 20

    def run() -> None:
        for _ in range(steps):
            choose_marked(markers, random.integers(0, _VOCAB, (_BATCH, made.marking.context_width)).tolist(), logits_BV)

    return 1000 * _median(run, rounds) / steps


def _tracing(keys: KeySet, accounts: int, rounds: int) -> float:
    from spiritsafe.watermark._native import NativeDetector

    detector = NativeDetector(keys)
    reading = detector.read(np.random.default_rng(0).integers(0, _VOCAB, 300).astype(np.uint32), 0)
    account_keys = keys.account_keys(keys.current, range(1, accounts + 1), detector.scheme)
    return _median(lambda: detector.account_totals(reading, 0, account_keys), rounds)


def _median(work: Callable[[], object], rounds: int) -> float:
    """Seconds, after one unmeasured run that compiles."""
    work()
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)
