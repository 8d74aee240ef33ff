"""Engine adapters beside the engines' own detectors: the same token ids, statistic and deduplication; ids → p.

One thread a side, rounds alternate, medians are reported. Texts have Zipf's law over 128,000 tokens, in documents of
256, 2,048 and 32,768 tokens. Before anything is timed both sides must agree on the count and on the statistic.

The engines are no dependencies. Unpack a wheel and say where it is; a peer that is not given is skipped:

    pip download --no-deps vllm==0.33.0 && unzip -q vllm-*.whl -d DIR     →  --vllm-path DIR
    pip download --no-deps sglang==0.5.23 && unzip -q sglang-*.whl -d DIR && pip install --target DIR msgspec
                                                                          →  --sglang-path DIR
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

VOCAB = 128_000
LENGTHS = (256, 2_048, 32_768)
TOKENS = 131_072  # a side, a length and a round
VLLM, VLLM_TARGET = "0.33.0", 20
SGLANG, SGLANG_TARGET, SGLANG_CONTEXTS = "0.5.23", 100, 4_096


def vllm(path: Path, rounds: int) -> dict[str, Any]:
    """vLLM's `GumbelWatermarkDetector` and `DualKeyGumbelWatermarkDetector` on a CPU, out of the unpacked wheel."""
    version = _version("vllm", path)
    assert version == VLLM, f"{path} holds vllm {version}, but the numbers are for {VLLM}"
    _import_vllm_detectors(path)
    from vllm.v1.watermarking.gumbel import DualKeyGumbelWatermarkDetector, GumbelWatermarkDetector

    from spiritsafe.watermark.adapters import engine_detector

    params = {"key": 0x0123456789ABCDEF, "context_width": 4, "deduplicate_contexts_max_history": None}
    results = {}
    for engine, theirs in (
        ("vllm-gumbel", GumbelWatermarkDetector(params["key"])),
        ("vllm-dual", DualKeyGumbelWatermarkDetector(params["key"])),
    ):
        ours = engine_detector(engine, params)

        def peer(ids: list[int], theirs: Any = theirs) -> tuple[int, float]:
            found = theirs.detect(ids)
            return found.num_scored_tokens, found.score

        results[engine] = _compare(_one_document(ours), peer, rounds)
    return _report("vllm", f"vllm {version}", results, VLLM_TARGET)


def _import_vllm_detectors(path: Path) -> None:
    """Its watermark files import the sampler, which needs a GPU's libraries; detection needs none of that."""
    from pydantic.dataclasses import dataclass

    for name in ("vllm", "vllm.config", "vllm.v1", "vllm.v1.worker", "vllm.v1.worker.gpu", "vllm.v1.worker.gpu.sample"):
        package = types.ModuleType(name)
        package.__path__ = [str(path / name.replace(".", "/"))]
        sys.modules[name] = package
    stubs = {
        "vllm.logger": {"init_logger": lambda _: SimpleNamespace(warning_once=lambda *_, **__: None)},
        "vllm.config.utils": {"config": dataclass},
        "vllm.v1.worker.gpu.sample.gumbel": {"gumbel_sample": None},
    }
    for name, names in stubs.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(names)


def sglang(path: Path, rounds: int) -> dict[str, Any]:
    """SGLang's `WatermarkDetector` with one key and with two, out of the unpacked wheel.

    It reads 4,096 contexts of a document at most, so longer documents are cut to that: neither side skips anything.
    """
    version = _version("sglang", path)
    assert version == SGLANG, f"{path} holds sglang {version}, but the numbers are for {SGLANG}"
    # Its detector is a package that imports nothing else of SGLang, but msgspec.
    sys.path += [str(path / "sglang" / "srt" / "sampling"), str(path)]
    from watermarking import detect

    from spiritsafe.watermark.adapters import engine_detector

    results = {}
    keys = {"key": "0123456789abcdef", "key_b": "fedcba9876543210"}
    for engine, names in (("sglang-gumbel", ("key",)), ("sglang-dual", ("key", "key_b"))):
        params = {name: keys[name] for name in names}
        ours = engine_detector(engine, params)

        def one(ids: Any, ours: Any = ours) -> tuple[int, float]:
            (n,), (total,) = ours.totals_batch(ids, np.array([0, len(ids)]), 0)
            ours.log10_tail(n, total)
            return n, total

        def peer(ids: list[int], params: Any = params) -> tuple[int, float]:
            found = detect(ids, **params).combined
            return found.num_contexts, found.score

        # Ours takes the lower end of a step of 2^-32 where theirs takes its middle: hence the looser tolerance.
        lengths = [min(length, SGLANG_CONTEXTS) for length in LENGTHS]
        results[engine] = _compare(one, peer, rounds, lengths, 1e-6)
    return _report("sglang", f"sglang {version}", results, SGLANG_TARGET)


def _one_document(detector: Any) -> Callable[[Any], tuple[int, float]]:
    """Ours, as `detect` does it for a document's row: read, deduplicate, score, tail."""
    from spiritsafe.watermark._seen import DocumentSeen

    seen = DocumentSeen()

    def run(ids: Any) -> tuple[int, float]:
        reading = detector.read(ids, 0)
        new = seen.first(reading.inputs)
        scores = detector.scores(reading if new.all() else reading.take(new), 0)
        n, total = int(scores.counted.sum()), float(scores.values[scores.counted].sum())
        detector.log10_tail(n, total)
        return n, total

    return run


def _compare(
    ours: Callable[[Any], tuple[int, float]],
    peer: Callable[[list[int]], tuple[int, float]],
    rounds: int,
    lengths: Sequence[int] = LENGTHS,
    rel_tol: float = 1e-9,
) -> Any:
    """Median tokens a second of both sides, by document length. The peer gets lists, ours arrays: what each reads."""
    result = {}
    for length in lengths:
        rng = np.random.default_rng(length)
        arrays = [(rng.zipf(1.1, length) % VOCAB).astype(np.uint32) for _ in range(TOKENS // length)]
        lists = [array.tolist() for array in arrays]
        (n, total), (their_n, their_total) = ours(arrays[0]), peer(lists[0])
        assert n == their_n, f"the two sides count {n} and {their_n} tokens"
        assert math.isclose(total, their_total, rel_tol=rel_tol), f"the two sides sum to {total} and {their_total}"
        times: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(rounds):
            times["ours"].append(_seconds(ours, arrays))
            times["peer"].append(_seconds(peer, lists))
        rate = {side: TOKENS / statistics.median(seconds) for side, seconds in times.items()}
        result[str(length)] = {side: round(value) for side, value in rate.items()} | {
            "ratio": round(rate["ours"] / rate["peer"], 1)
        }
    return result


def _seconds(run: Callable[[Any], object], documents: Sequence[Any]) -> float:
    started = time.perf_counter()
    for document in documents:
        run(document)
    return time.perf_counter() - started


def _report(family: str, peer: str, results: dict[str, Any], target: float) -> dict[str, Any]:
    ratio = min(row["ratio"] for rows in results.values() for row in rows.values())
    return {
        "benchmark": f"watermark_engines.{family}",
        "peer": peer,
        "tokens_per_s": results,
        "ratio": ratio,
        "targets": {"ratio": f">= {target}"},
        "met": ratio >= target,
        "load": round(os.getloadavg()[0], 1),
    }


def _version(name: str, path: Path) -> str | None:
    return next((d.version for d in distributions(name=name, path=[str(path)])), None)


def main(paths: dict[Callable[[Path, int], dict[str, Any]], str | None], rounds: int) -> int:
    import torch

    torch.set_num_threads(1)
    met = True
    for compare, path in paths.items():
        if path is None:
            print(
                f"{compare.__name__}: skipped, --{compare.__name__}-path says where its wheel is unpacked",
                file=sys.stderr,
            )
            continue
        report = compare(Path(path), rounds)
        print(json.dumps(report | {"rounds": rounds}))
        met = met and bool(report["met"])
    return 0 if met else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-path", help=f"where the wheel of vllm {VLLM} was unpacked")
    parser.add_argument("--sglang-path", help=f"where the wheel of sglang {SGLANG} was unpacked, msgspec beside it")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sys.exit(main({vllm: options.vllm_path, sglang: options.sglang_path}, options.rounds))
