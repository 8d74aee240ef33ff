"""What transformers' own processors emit, and texts to be wrong about. Run as a program it writes vectors/hf_*.json."""

from __future__ import annotations

import json
import re
import sysconfig
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

VECTORS = Path(__file__).parent / "vectors"
ENGINE = "transformers 5.23.0, torch 2.13.0, CPU"
CERTAIN = 1e-4
CORPORA = ("source", "licence", "templated", "random")


def kgw_processor(params: Mapping[str, Any]) -> Any:
    from transformers import WatermarkingConfig

    settings = {name: value for name, value in params.items() if name != "vocab_size"}
    return WatermarkingConfig(**settings).construct_processor(params["vocab_size"], "cpu")


def kgw_greens(params: Mapping[str, Any], ids: list[int]) -> list[int]:
    """1 where a token is in the list that transformers draws for it, from the first position its detector scores."""
    import torch

    processor = kgw_processor(params)
    selfhash = processor.seeding_scheme == "selfhash"
    start = processor.context_width - 1 if selfhash else 1
    greens = []
    for t in range(start, len(ids)):
        before = torch.tensor(ids[: t + 1 if selfhash else t])
        greens.append(int(ids[t] in processor._get_greenlist_ids(before)))
    return greens


def synthid_processor(params: Mapping[str, Any]) -> Any:
    from transformers import SynthIDTextWatermarkingConfig

    settings = {name: value for name, value in params.items() if name != "eos_token_id"}
    return SynthIDTextWatermarkingConfig(**settings).construct_processor(0, "cpu")


def synthid_values(params: Mapping[str, Any], ids: list[int]) -> tuple[list[int], list[int]]:
    """(sum over layers, 1 if unmasked) of each whole n-gram, from transformers' own functions."""
    import torch

    processor, row = synthid_processor(params), torch.tensor([ids])
    mask = processor.compute_context_repetition_mask(row)
    if (eos := params.get("eos_token_id")) is not None:
        mask = mask * processor.compute_eos_token_mask(row, eos)[:, params["ngram_len"] - 1 :]
    return processor.compute_g_values(row)[0].sum(1).tolist(), mask[0].int().tolist()


def corpus(name: str, vocab: int) -> np.ndarray:
    """A text as ids in 1 … vocab − 1, a word or a mark of punctuation each."""
    rng = np.random.default_rng(3)
    if name == "random":
        return rng.integers(1, vocab, 20_000, dtype=np.uint32)
    stdlib = Path(sysconfig.get_path("stdlib"))
    if name == "source":
        text = "".join((stdlib / module).read_text(encoding="utf-8") for module in ("argparse.py", "typing.py"))
    elif name == "licence":
        text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    else:
        text = "\n".join(
            f"Dear customer {rng.integers(100)}, your order {i} has shipped on day {rng.integers(28)}. It will arrive in"
            f" {rng.integers(2, 5)} days. Thank you for shopping with us! If anything is wrong, reply to this message."
            for i in range(400)
        )
    return np.array([zlib.crc32(w.encode()) % (vocab - 1) + 1 for w in re.findall(r"\w+|\S", text)], np.uint32)


def assert_null(log10_ps: np.ndarray, levels: tuple[float, ...]) -> None:
    """Rejections at each nominal level are not significantly above it, and at the largest not absurdly below."""
    trials = len(log10_ps)
    for level in levels:
        rejected = int((log10_ps <= np.log10(level)).sum())
        assert binom.sf(rejected - 1, trials, level) >= CERTAIN, (level, rejected, trials)
    assert (log10_ps <= np.log10(levels[0])).mean() > levels[0] / 4


def _write() -> None:
    rng = np.random.default_rng(1)

    def ids(vocab: int, count: int) -> list[int]:
        return [int(x) for x in rng.integers(0, vocab, count)]

    kgw = []
    for vocab, ratio, key, scheme, width, count in (
        (49152, 0.25, 15485863, "lefthash", 1, 60),
        (49152, 0.25, 15485863, "selfhash", 4, 60),
        (151936, 0.5, 2**40 + 32, "lefthash", 3, 20),
        (151936, 0.1, 2**63 - 25, "selfhash", 2, 40),
        (1009, 0.25, 2**64 - 3, "lefthash", 1, 200),
        (1009, 0.25, -(2**63) + 1, "selfhash", 3, 200),
        (1009, 0.25, 6, "lefthash", 1, 200),
        (1009, 0.25, -7, "selfhash", 1, 200),
        (7, 0.9, 15485863, "lefthash", 1, 60),
    ):
        params = {
            "vocab_size": vocab,
            "greenlist_ratio": ratio,
            "hashing_key": key,
            "seeding_scheme": scheme,
            "context_width": width,
        }
        text = ids(vocab, count)
        kgw.append({"params": params, "ids": text, "green": kgw_greens(params, text)})
    synthid = []
    for ngram_len, layers, seed, size, history, words, eos in (
        (5, 30, 0, 65536, 1024, 151936, None),
        (5, 30, 0, 65536, 1024, 3, None),
        (2, 9, 7, 64, 20, 30, None),
        (3, 4, 2**63 + 1, 2**12, 5, 4, 3),
        (3, 1, 12, 16, 1024, 1009, 77),
    ):
        params = {
            "ngram_len": ngram_len,
            "keys": [int(x) for x in rng.integers(-(2**63), 2**63, layers)],
            "context_history_size": history,
            "sampling_table_seed": seed,
            "sampling_table_size": size,
            "eos_token_id": eos,
        }
        text = ids(words, 120)
        values, mask = synthid_values(params, text)
        synthid.append({"params": params, "ids": text, "values": values, "mask": mask})
    for name, rows in (("kgw", kgw), ("synthid", synthid)):
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        text = f'{{"engine": "{ENGINE}", "rows": [\n{lines}\n]}}\n'
        (VECTORS / f"hf_{name}.json").write_text(text, encoding="ascii")


if __name__ == "__main__":
    _write()
