"""Reading and marking beside transformers' own KGW and SynthID, on one thread, V = 49,152.

detect: token ids → p, one document after another, with the same deduplication: its `WatermarkDetector` with
`ignore_repeated_ngrams=True`, the `hf-kgw` adapter on the very same marks (with no green list drawn yet, and with those
of earlier documents), and Spiritsafe's own KGW marks, which hash instead of shuffling. Texts have Zipf's law. The peer
and the adapter must agree on every count before anything is timed. The peer's p is a z-test's, ours a bound or exact.

mark: one step of eight replies, logits → logits, of about 3 nats each. Ours is the whole processor, which also chooses
the tokens: softmax, marks, drawing. The peer's only shapes the logits, and `generate` draws after it. "own kgw, bias
only" does no more than the peer's: hash the contexts, find the green tokens, add δ to their logits.

Rounds alternate; medians are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PEER = "5.23.0"
VOCAB, BATCH, GAMMA = 49_152, 8, 0.25
DOCUMENTS, LENGTH = 4, 512
REPEAT = 200  # of the same texts, for the side that needs a fraction of a millisecond
STEPS = 12
NATIVE_DETECT, KGW_MARK, SYNTHID_MARK, STEP_MS = 1000, 15, 50, 5


def detecting(rounds: int) -> dict[str, Any]:
    import torch
    from transformers import PreTrainedConfig, WatermarkDetector, WatermarkingConfig

    from spiritsafe.watermark._seen import DocumentSeen
    from spiritsafe.watermark.adapters import engine_detector

    rng = np.random.default_rng(0)
    texts = [(rng.zipf(1.1, LENGTH) % (VOCAB - 1) + 1).astype(np.uint32) for _ in range(DOCUMENTS)]
    rows = [torch.from_numpy(text.astype(np.int64))[None] for text in texts]
    ids, offsets = np.concatenate(texts), np.arange(DOCUMENTS + 1) * LENGTH
    model = PreTrainedConfig(vocab_size=VOCAB, bos_token_id=0)

    def peer() -> list[tuple[int, float]]:
        detector = WatermarkDetector(model, "cpu", WatermarkingConfig(), ignore_repeated_ngrams=True)
        found = [detector(row, return_dict=True) for row in rows]
        return [(int(f.num_tokens_scored[0]), float(f.num_green_tokens[0])) for f in found]

    def adapter(detector: Any) -> list[tuple[int, float]]:
        found, seen = [], DocumentSeen()
        for text in texts:
            reading = detector.read(text, 0)
            scores = detector.scores(reading.take(seen.first(reading.inputs)), 0)
            found.append((len(scores.values), float(scores.values.sum())))
            detector.log10_tail(*found[-1])
        return found

    def fresh() -> Any:
        return engine_detector("hf-kgw", {"vocab_size": VOCAB})

    native = _native("kgw", context_width=1)

    def own() -> list[float]:
        counts, totals = native.totals_batch(ids, offsets, 0)
        return [native.log10_tail(int(n), float(total)) for n, total in zip(counts, totals, strict=True)]

    warm = fresh()
    assert peer() == adapter(fresh()) == adapter(warm), "the two sides count differently"
    assert native.totals_batch(ids, offsets, 0)[0].tolist() == [n for n, _ in adapter(warm)]
    own()
    tokens = DOCUMENTS * LENGTH
    rates = _rates(
        {
            "transformers": (peer, tokens, 1),
            "hf-kgw, first texts": (lambda: adapter(fresh()), tokens, 1),
            "hf-kgw, lists drawn": (lambda: adapter(warm), tokens, REPEAT),
            "own kgw": (own, tokens, REPEAT),
        },
        rounds,
    )
    ratios = {side: round(rate / rates["transformers"], 1) for side, rate in rates.items() if side != "transformers"}
    return {
        "benchmark": "watermark_hf.detect",
        "tokens_per_s": {side: round(rate) for side, rate in rates.items()},
        "ratios": ratios,
        "ratio": ratios["own kgw"],
        "targets": {"ratio": f">= {NATIVE_DETECT}"},
        "met": ratios["own kgw"] >= NATIVE_DETECT,
    }


def marking(rounds: int) -> dict[str, Any]:
    from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig

    keys = np.random.default_rng(1).integers(0, 2**31, 30).tolist()
    sides: dict[str, tuple[Callable[[], object], float, int]] = {}
    for scheme, config in (
        ("kgw", WatermarkingConfig()),
        ("kgw selfhash", WatermarkingConfig(seeding_scheme="selfhash")),
        ("synthid", SynthIDTextWatermarkingConfig(ngram_len=5, keys=keys)),
    ):
        if scheme != "kgw selfhash":
            sides[f"own {scheme}"] = (_steps(_processor(scheme)), STEPS, 1)
        sides[f"transformers {scheme}"] = (
            _steps(lambda config=config: config.construct_processor(VOCAB, "cpu")),
            STEPS,
            1,
        )
    sides["own kgw, bias only"] = (_steps(_Bias), STEPS, 1)
    sides["own gumbel-dual"] = (_steps(_processor("gumbel-dual")), STEPS, 1)
    rates = _rates(sides, rounds)
    step = {side: 1e3 / rate for side, rate in rates.items()}
    kgw, synthid = (step[f"transformers {scheme}"] / step[f"own {scheme}"] for scheme in ("kgw", "synthid"))
    bias = step["transformers kgw"] / step["own kgw, bias only"]
    selfhash = step["transformers kgw selfhash"] / step["own kgw"]
    slowest = max(ms for side, ms in step.items() if side.startswith("own"))
    return {
        "benchmark": "watermark_hf.mark",
        "ms_per_step": {side: round(ms, 2) for side, ms in step.items()},
        "ratio": round(kgw, 1),
        "ratio_bias_only": round(bias, 1),
        "ratio_selfhash": round(selfhash, 1),
        "ratio_synthid": round(synthid, 1),
        "targets": {
            "ratio": f">= {KGW_MARK}",
            "ratio_synthid": f">= {SYNTHID_MARK}",
            "own ms_per_step": f"<= {STEP_MS}",
        },
        "met": kgw >= KGW_MARK and synthid >= SYNTHID_MARK and slowest <= STEP_MS,
    }


def _steps(make: Callable[[], Any]) -> Callable[[], None]:
    """Eight replies of STEPS tokens: only the processor's calls differ between the sides."""
    import torch

    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, VOCAB, (BATCH, 8), generator=generator)
    logits = torch.randn(STEPS, BATCH, VOCAB, generator=generator) * 4

    def run() -> None:
        processor, ids = make(), prompts
        for scores in logits:
            shaped = processor(ids, scores)
            ids = torch.cat([ids, shaped.argmax(-1, keepdim=True)], 1)

    return run


def _processor(scheme: str) -> Callable[[], Any]:
    from spiritsafe.watermark._marker import Markers
    from spiritsafe.watermark._transformers import WatermarkLogitsProcessor

    keys = _keys({"scheme": scheme, "surprise_bits": 0.0})
    return lambda: WatermarkLogitsProcessor(Markers(keys), seed=0)


class _Bias:
    """What the peer's KGW processor does, with our coins."""

    def __init__(self) -> None:
        from spiritsafe.watermark.schemes import Kgw

        self.scheme, self.key = Kgw(2, GAMMA, 2.0), np.array([1, 2], np.uint64)

    def __call__(self, ids: Any, scores: Any) -> Any:
        from spiritsafe.watermark._prf import context_hashes

        hashes = context_hashes(self.key, ids[:, -2:].numpy().astype(np.uint32))
        return scores + self.scheme.green(hashes, VOCAB, "cpu") * self.scheme.delta


def _native(scheme: str, **marking: Any) -> Any:
    from spiritsafe.watermark._native import NativeDetector

    return NativeDetector(_keys({"scheme": scheme, "account_share": 0.0, "gamma": GAMMA} | marking))


def _keys(marking: dict[str, Any]) -> Any:
    from spiritsafe.keys import new_keys

    with tempfile.TemporaryDirectory() as folder:
        return new_keys(Path(folder) / "keys.json", marking=marking)


def _rates(sides: dict[str, tuple[Callable[[], object], float, int]], rounds: int) -> dict[str, float]:
    """Median units a second by side, of (what to run, its units, how often in a row)."""
    for run, _, _ in sides.values():
        run()
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, (run, units, repeat) in sides.items():
            started = time.perf_counter()
            for _ in range(repeat):
                run()
            rates[side].append(units * repeat / (time.perf_counter() - started))
    return {side: statistics.median(values) for side, values in rates.items()}


def main(rounds: int) -> int:
    import torch
    import transformers

    assert transformers.__version__ == PEER, f"transformers {transformers.__version__}, but the numbers are for {PEER}"
    torch.set_num_threads(1)
    met = True
    for part in (detecting, marking):
        report = part(rounds)
        peer = {"peer": f"transformers {PEER}", "rounds": rounds, "load": round(os.getloadavg()[0], 1)}
        print(json.dumps(report | peer))
        met = met and bool(report["met"])
    return 0 if met else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    sys.exit(main(parser.parse_args().rounds))
