"""`make proof ARGS=watermark_null`: is any test of a mark ever wrong more often than it says?

A trial is one document (or one pool of documents) under a fresh key: no text here was marked with the key it is
tested against, so p must reach 10^-a in at most a share 10^-a of the trials. A cell is a scheme or an engine on a kind
of text; 5,000 trials and more. A cell fails if its count at 1e-2 or 1e-3 would happen in less than 1 in 10^4 honest
cells; it is called weak if it rejects absurdly seldom. Results with the code's hash go to
benchmarks/results/watermark-null.json and docs/watermark/calibration.md, the Q-Q plot beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from benchmarks.proof_watermark_attacks import RUN as WRITTEN
from benchmarks.study import ROOT, Teacher, code, publish_between

from spiritsafe import pvalue
from spiritsafe.keys import new_keys
from spiritsafe.runs import atomic_write
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark._types import Detector, Reading, TailOfInputs
from spiritsafe.watermark.adapters import engine_detector

RESULTS = ROOT / "benchmarks" / "results" / "watermark-null.json"
PAGE = ROOT / "docs" / "watermark" / "calibration.md"
PICTURE = ROOT / "docs" / "img" / "watermark-null.png"
LENGTH, POOL, VOCAB = 300, 4, 49_152
LEVELS = (1e-2, 1e-3)
OURS: dict[str, dict[str, Any]] = {
    "gumbel-dual": {"scheme": "gumbel-dual"},
    "gumbel-dual k=1": {"scheme": "gumbel-dual", "context_width": 1},
    "kgw": {"scheme": "kgw"},
    "synthid": {"scheme": "synthid"},
}


ENGINES: dict[str, dict[str, Any]] = {  # width 2: the engines' default of 4 repeats itself less
    "vllm-gumbel": {"key": 1, "context_width": 2},
    "vllm-dual": {"key": 1, "context_width": 2, "algorithm": "dual_key_gumbel"},
    "sglang-gumbel": {"key": "0123456789abcdef", "context_window": 2},
    "sglang-dual": {"key": "0123456789abcdef", "key_b": "fedcba9876543210", "context_window": 2},
    "hf-kgw lefthash": {"vocab_size": VOCAB},
    "hf-kgw selfhash": {"vocab_size": VOCAB, "seeding_scheme": "selfhash", "context_width": 2},
    "hf-synthid": {"ngram_len": 3, "keys": list(range(1, 31))},
}
TESTS = (*OURS, *ENGINES)


def main(trials: int, only: list[str], results: Path) -> int:
    study = json.loads(results.read_text()) if results.exists() else {"study": "watermark null", "cells": {}}
    corpora: dict[str, list[np.ndarray]] | None = None
    for test in only or TESTS:
        for corpus in ("licences", "source code", "templates", "model text", "pools"):
            cell = f"{test} / {corpus}"
            if len(study["cells"].get(cell, {}).get("p", [])) and study["cells"][cell]["trials"] >= trials:
                continue
            corpora = corpora or read_corpora()
            began = time.perf_counter()
            p = np.sort(np.fromiter(run_cell(test, corpora[corpus], corpus == "pools", trials), float))
            study["cells"][cell] = {"code": code(), **summary(p)}
            atomic_write(results, json.dumps(study) + "\n")
            print(
                f"{cell}: {len(p)} trials, {study['cells'][cell]['rejected']} in {time.perf_counter() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    if results == RESULTS and not only:
        publish_between(PAGE, table(study["cells"]))
        draw(study["cells"])
    return int(any(not cell["honest"] for cell in study["cells"].values()))


def read_corpora() -> dict[str, list[np.ndarray]]:
    """Documents of 300 ids as SmolLM2's tokenizer has them; texts that repeat themselves are the point."""
    teacher = Teacher()
    stdlib = Path(sysconfig.get_path("stdlib"))
    licences = [stdlib / "LICENSE.txt", ROOT / "LICENSE", *sorted(Path("/usr/share/common-licenses").glob("*"))]
    words = ("seed", "valve", "still", "cask", "meter", "ledger", "copper", "grain", "proof", "spirit")
    templates = [
        "\n".join(
            f"Thank you for contacting support. Your order #{100 * d + i} for the {words[(d + i) % 10]} has"
            f" been shipped and will arrive within {2 + (d * i) % 5} working days. Is there anything else I can help"
            " you with?"
            for i in range(12)
        )
        for d in range(40)
    ]
    source = [p.read_text(errors="replace") for p in sorted(stdlib.glob("*.py"))[::6]]

    def documents(texts: Sequence[str]) -> list[np.ndarray]:
        ids = [np.asarray(teacher.tokenizer.encode(t, add_special_tokens=False), np.uint32) for t in texts]
        return [one[at : at + LENGTH] for one in ids for at in range(0, len(one) - LENGTH // 2, LENGTH)]

    written = WRITTEN / "documents.json"
    if not written.exists():
        sys.exit("no model text yet: run `make proof ARGS=watermark_attacks` first, it writes some")
    model = [np.asarray(d["ids"][:LENGTH], np.uint32) for d in json.loads(written.read_text())]
    kinds = {
        "licences": documents([p.read_text(errors="replace") for p in licences if p.is_file()]),
        "source code": documents(source),
        "templates": documents(templates),
        "model text": model,
    }
    kinds["pools"] = [d for kind in kinds.values() for d in kind]
    return kinds


def run_cell(test: str, documents: list[np.ndarray], pooled: bool, trials: int) -> Iterator[float]:
    """p-values (log10), each under a key that nothing else was tested with."""
    random = np.random.default_rng(20261124)
    each = 25  # keys a document; coins, where a scheme has them, are fresh a document
    with TemporaryDirectory() as folder:
        for number in range(-(-trials // each)):
            chosen = random.choice(len(documents), POOL if pooled else 1, replace=False)
            detector = fresh(test, Path(folder), number)
            yield from trial([documents[c] for c in chosen], detector, f"null {test} {number}".encode(), each)


def fresh(test: str, folder: Path, number: int) -> Detector:
    if test in OURS:
        return NativeDetector(new_keys(folder / f"{number}.json", marking=OURS[test]))
    return engine_detector(test.split()[0], ENGINES[test])


def trial(documents: Sequence[np.ndarray], detector: Detector, seed: bytes, keys: int) -> Iterator[float]:
    if detector.keyed_reading:
        for decoy in detector.decoys(seed, keys):
            reading = first_only([decoy.read(ids, 0) for ids in documents])
            scores = decoy.scores(reading, 0)
            kept = scores.counted
            yield tail_of(decoy, reading.inputs[kept])(int(kept.sum()), float(scores.values[kept].sum()))
        return
    reading = first_only([detector.read(ids, 0) for ids in documents])
    n, totals = detector.decoy_totals(reading, 0, seed, keys)
    tail = tail_of(detector, reading.inputs)
    yield from (tail(n, float(total)) for total in totals)


def tail_of(detector: Detector, inputs: Any) -> Callable[[int, float], float]:
    if isinstance(detector, TailOfInputs):
        return lambda n, total: detector.log10_tail_of(inputs, total)
    return detector.log10_tail


def first_only(readings: Sequence[Reading]) -> Reading:
    """The readings as one, each input once."""
    together = Reading(
        *(
            np.concatenate([getattr(reading, name) for reading in readings])
            for name in ("inputs", "positions", "windows", "tokens")
        )
    )
    _, first = np.unique(together.inputs, return_index=True)
    return together.take(np.isin(np.arange(len(together.inputs)), first))


def summary(p: np.ndarray) -> dict[str, Any]:
    rejected = {f"{level:g}": int((p <= np.log10(level)).sum()) for level in LEVELS}
    too_often = [pvalue.binomial(len(p), level, k) for level, k in zip(LEVELS, rejected.values(), strict=True)]
    too_seldom = pvalue.binomial(len(p), 1 - LEVELS[0], len(p) - rejected[f"{LEVELS[0]:g}"])
    quantiles = np.unique(np.round(np.geomspace(1, len(p), 60)).astype(int)) - 1
    return {
        "trials": len(p),
        "rejected": rejected,
        "honest": bool(min(too_often) > -4),
        "weak": bool(too_seldom < -4),
        "rank": [(int(q) + 0.5) / len(p) for q in quantiles],
        "p": [float(p[q]) for q in quantiles],
    }


def table(cells: dict[str, Any]) -> str:
    lines = ["| test / text | trials | p ≤ 0.01 | p ≤ 0.001 | |", "|---|---|---|---|---|"]
    for name, cell in cells.items():
        verdict = "honest" if cell["honest"] else "**too often**"
        seldom = ", seldom" if cell["weak"] else ""
        shares = [f"{k / cell['trials']:.3%}" for k in cell["rejected"].values()]
        lines.append(f"| {name} | {cell['trials']} | {shares[0]} | {shares[1]} | {verdict}{seldom} |")
    return "\n".join(lines) + "\n"


def draw(cells: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tests = list(dict.fromkeys(name.split(" / ")[0] for name in cells))
    figure, axes = plt.subplots(3, 4, figsize=(11, 8), sharex=True, sharey=True, layout="constrained")
    for axis in axes.flat[len(tests) :]:
        axis.set_axis_off()
    for axis, test in zip(axes.flat, tests, strict=False):
        axis.plot([0, 4], [0, 4], color="0.6", linewidth=1)
        for name, cell in cells.items():
            if name.startswith(f"{test} / "):
                axis.plot(
                    -np.log10(cell["rank"]), -np.array(cell["p"]), marker=".", markersize=3, linewidth=0.8,
                    label=name.split(" / ")[1],
                )  # fmt: skip
        axis.set_title(test, fontsize=10)
        axis.set_xlim(0, 4)
        axis.set_ylim(0, 4.5)
    axes[0, 0].legend(fontsize=7, frameon=False)
    figure.supxlabel("expected −log10 p of a fresh key", fontsize=10)
    figure.supylabel("observed −log10 p; above the line is too often", fontsize=10)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--only", nargs="+", default=[], choices=TESTS, metavar="TEST")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    sys.exit(main(given.trials, given.only, given.results))
