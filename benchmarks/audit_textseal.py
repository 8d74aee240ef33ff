"""Radioactivity beside TextSeal: from the ids of texts and a suspect's predictions to the sum, a position at a time.

The same texts and predictions on both sides, reading mode, one key, one thread. Theirs is what its reading of a suspect
calls on every text (`score_batch`, duplicates of window and token left out over all texts: "v2"), with its own PRF;
ours also decides which predictions may count and in which order, which theirs does not ask. No target; the ratio is
reported. The peer is no dependency:

    pip install --no-deps --target DIR textseal==0.0.5      →  --peer-path DIR
"""

from __future__ import annotations

import os

os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

PEER = "0.0.5"
TEXTS, LENGTH, VOCAB = 2_000, 50, 49_152
SCHEMES = {"kgw": "binary", "gumbel-dual": "uniform"}  # the peer's name of its PRF


def rate(work: Callable[[], None]) -> float:
    """Positions a CPU second."""
    began = time.process_time()
    work()
    return TEXTS * LENGTH / (time.process_time() - began)


def ours(scheme: str, texts: list[Any]) -> Callable[[], None]:
    from spiritsafe.audit.tests._radioactive_keys import Tried
    from spiritsafe.audit.tests._radioactive_reading import predicted
    from spiritsafe.audit.tests._radioactive_score import epoch_score
    from spiritsafe.watermark import Marking, NativeDetector

    detector = NativeDetector.of_keys(Marking(scheme=scheme, account_share=0.0), [("e", bytes(16), bytes(16))])
    tried = Tried("e", detector, "epoch")

    def judge() -> None:
        counted = predicted(detector, texts).counted(detector, "epoch")
        epoch_score(tried, counted, False, b"", 0)

    return judge


def theirs(method: str, texts: list[Any]) -> Callable[[], None]:
    import torch
    from textseal.common.watermark.core import WatermarkConfig, score_batch

    torch.set_num_threads(1)
    config = WatermarkConfig(secret_key=7, ngram=1, method=method, gamma=0.5, scoring_method="v2")
    rows = [
        (torch.from_numpy(text.ids.astype(np.int64)), torch.from_numpy(text.said.astype(np.int64))) for text in texts
    ]

    def judge() -> None:
        seen: set[Any] = set()
        total = 0.0
        for ids, predicted in rows:
            mask, _ = score_batch(ids[None, :, None], predicted[None], config, seen_windows=seen)
            total += sum(mask)
        assert total > 0

    return judge


def main(path: str | None, rounds: int) -> int:
    if path is None:
        print("audit_textseal: skipped, --peer-path says where textseal is", file=sys.stderr)
        return 0
    version = next((d.version for d in distributions(name="textseal", path=[path])), None)
    assert version == PEER, f"{path} holds textseal {version}, but the numbers are for {PEER}"
    package = types.ModuleType("textseal")  # its own __init__ imports a toolkit; the arithmetic needs torch alone
    package.__path__ = [str(Path(path) / "textseal")]
    sys.modules["textseal"] = package
    from spiritsafe.audit.tests._radioactive_reading import Wrote

    random = np.random.default_rng(0)

    def tokens(*shape: int) -> Any:
        """As frequent as words are."""
        return (random.zipf(1.2, shape) % VOCAB).astype(np.uint32)

    texts = [Wrote(tokens(4), tokens(LENGTH), tokens(LENGTH)) for _ in range(TEXTS)]
    rates: dict[str, dict[str, float]] = {}
    for scheme, method in SCHEMES.items():
        sides = {"ours": ours(scheme, texts), "peer": theirs(method, texts)}
        for work in sides.values():
            work()  # compiles
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, work in sides.items():
                found[side].append(rate(work))
        rates[scheme] = {side: round(statistics.median(values)) for side, values in found.items()}
    ratios = {scheme: round(both["ours"] / both["peer"], 1) for scheme, both in rates.items()}
    report: dict[str, Any] = {
        "benchmark": "audit_textseal",
        "peer": f"textseal {PEER}",
        "positions_s": rates,
        "ratio": ratios,
        "load": round(os.getloadavg()[0], 1),
        "rounds": rounds,
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-path", help=f"where textseal {PEER} was installed")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sys.exit(main(options.peer_path, options.rounds))
