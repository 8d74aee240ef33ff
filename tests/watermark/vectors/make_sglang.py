"""Makes sglang_*.json by running SGLang 0.5.23's own watermark files, on a CPU; the JSON is data and is committed.

    pip download --no-deps sglang==0.5.23 && unzip sglang-*.whl -d WHEEL
    pip install --no-deps --target WHEEL msgspec triton
    TRITON_INTERPRET=1 python tests/watermark/vectors/make_sglang.py WHEEL

What runs is SGLang's: detector.py (hashes, coins, scores, `detect`), core.py (the torch hashes, and `WatermarkState` with its
CPU branch, which generates the documents over synthetic logits), and two Triton kernels in Triton's interpreter: the one
that hashes contexts, and the one that selects tokens. All that hash must agree. What is stubbed are packages around these
files, and libdevice's log1p, which has no interpreter binding.
"""

from __future__ import annotations

import json
import random
import sys
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
MASK = 0xFFFFFFFF
VOCAB = 1500
KEYS = ("0", "1", "0123456789abcdef", "ffffffffffffffff", "8000000000000000", "0xDEADbeef", "7fffffffffffffff")
TOKENS = (0, 1, 17, 49151, 131071, 2147483647)
WIDTHS = (1, 2, 3, 4, 8, 64)
CHECKED_PICKS = 12  # a document


def import_sglang(wheel: Path) -> Any:
    """The wheel's watermark modules, without the rest of SGLang."""
    from importlib.metadata import distributions

    sys.path.append(str(wheel))
    import triton
    from triton.runtime.interpreter import TensorHandle

    (version,) = [d.version for d in distributions(name="sglang", path=[str(wheel)])]
    assert version == "0.5.23", version
    for name in ("sglang", "sglang.kernels", "sglang.kernels.ops", "sglang.kernels.ops.sampling", "sglang.srt"):
        package = types.ModuleType(name)
        package.__path__ = [str(wheel / name.replace(".", "/"))]
        sys.modules[name] = package
    package = types.ModuleType("sglang.srt.sampling")
    package.__path__ = [str(wheel / "sglang/srt/sampling")]
    sys.modules[package.__name__] = package
    from sglang.kernels.ops.sampling import textseal_selector as selector
    from sglang.srt.sampling.watermarking import config, core, detector

    def log1p(x: Any) -> Any:
        return triton.language.tensor(TensorHandle(np.log1p(x.handle.data), x.handle.dtype), x.type)

    selector.libdevice = types.SimpleNamespace(log1p=log1p)
    return types.SimpleNamespace(config=config, core=core, detector=detector, selector=selector)


def kernel_context_hashes(sglang: Any, width: int, contexts: Sequence[Sequence[int]]) -> list[int]:
    """By `prepare_watermark_contexts_triton`, on ring buffers that hold the contexts."""
    n = len(contexts)
    ring = torch.zeros((n, width), dtype=torch.int32)
    lengths = torch.tensor([len(context) for context in contexts], dtype=torch.int32)
    for row, context in enumerate(contexts):
        ring[row, : len(context)] = torch.tensor(context, dtype=torch.int32)
    hashes = torch.zeros(n, dtype=torch.int64)
    sglang.selector.prepare_watermark_contexts_triton(
        ring,
        lengths,
        lengths.long() % width,
        torch.zeros((n, 8), dtype=torch.int32),
        torch.zeros(n, dtype=torch.int32),
        torch.arange(n),
        torch.full((n,), width, dtype=torch.int32),
        torch.ones(n, dtype=torch.bool),
        torch.full((n,), 50, dtype=torch.int32),
        hashes,
        torch.zeros(n, dtype=torch.bool),
        record_context=False,
    )
    return [int(value) & MASK for value in hashes.tolist()]


def twin_of(sglang: Any, key: int, low: int) -> int:
    """Another key, with this low word, that leaves the hash in the same 32-bit state: the mix solved for a word."""
    rotl = sglang.detector._rotl32

    def mixed(state: int, word: int) -> int:
        value = (rotl(word * 0xCC9E2D51 & MASK, 15) * 0x1B873593) & MASK
        return (rotl(state ^ value, 13) * 5 + 0xE6546B64) & MASK

    before, after = mixed(0, low), mixed(mixed(0, key & MASK), key >> 32)
    value = rotl((after - 0xE6546B64) * pow(5, -1, 2**32) & MASK, 19) ^ before
    word = rotl(value * pow(0x1B873593, -1, 2**32) & MASK, 17) * pow(0xCC9E2D51, -1, 2**32) & MASK
    return word << 32 | low


def hashes(sglang: Any, rng: random.Random) -> dict[str, Any]:
    det, core, parse = sglang.detector, sglang.core, sglang.config.parse_watermark_key
    keys = [*KEYS, *(f"{rng.getrandbits(64):x}" for _ in range(5))]
    contexts = [[rng.randrange(131072) for _ in range(width)] for width in WIDTHS for _ in range(3)]
    contexts += [[0], [0, 0, 0, 0], [2147483647, 0, 1, 131071]]
    by_context = [det.hash_context(context) for context in contexts]
    padded = torch.zeros((len(contexts), max(WIDTHS)), dtype=torch.int64)
    for row, context in enumerate(contexts):
        padded[row, : len(context)] = torch.tensor(context)
    assert core._hash_contexts(padded, torch.tensor([len(c) for c in contexts])).tolist() == by_context
    for width in WIDTHS:
        rows = [row for row, context in enumerate(contexts) if len(context) <= width]
        assert kernel_context_hashes(sglang, width, [contexts[r] for r in rows]) == [by_context[r] for r in rows]
    many = torch.tensor(by_context)
    by_key = []
    for key in map(parse, keys):
        found = [[det.watermark_hash(key, h, token) for token in TOKENS] for h in by_context]
        assert core._watermark_hash32_torch(torch.full_like(many, key), many, torch.tensor(TOKENS)).tolist() == found
        scores = [[det.WatermarkDetector._score(key, h, token) for token in TOKENS] for h in by_context]
        by_key.append({"hashes": found, "scores": scores})
    pairs = []
    for place, text in enumerate(keys):
        text_b = keys[(place * 5 + 3) % len(keys)]
        a, b = parse(text), parse(text_b)
        coins = [det.position_coin(a, b, h) for h in by_context]
        for share in (0.1, 0.5, 0.9):
            below = int(share * 2**32)
            rows = (torch.full_like(many, a), torch.full_like(many, b), many, torch.full_like(many, below))
            assert core._dual_key_a_mask_torch(*rows).tolist() == [coin < below for coin in coins]
        pairs.append({"key": text, "key_b": text_b, "coins": coins})
    one, b = parse(KEYS[2]), parse(keys[8])
    twin = f"{twin_of(sglang, one, 0xC0FFEE42):016x}"
    for h in by_context:
        assert det.position_coin(parse(twin), b, h) == det.position_coin(one, b, h)
        assert [det.watermark_hash(parse(twin), h, t) for t in TOKENS] == [
            det.watermark_hash(one, h, t) for t in TOKENS
        ]
    return {
        "source": "SGLang 0.5.23, see make_sglang.py",
        "contexts": contexts,
        "context_hashes": by_context,
        "tokens": TOKENS,
        "keys": [{"key": key} | row for key, row in zip(keys, by_key, strict=True)],
        "pairs": pairs,
        "twin_keys": [KEYS[2], twin],
    }


class Engine:
    """One request in SGLang's own state machine, over logits that depend on the last two tokens."""

    TABLE = torch.randn((97, VOCAB), generator=torch.Generator().manual_seed(5)) * 2.2

    def __init__(self, sglang: Any, prompt: list[int], row: dict[str, Any], server_window: int, top_k: int) -> None:
        self.sglang, self.ids, self.dual = sglang, list(prompt), row["key_b"] is not None
        self.state = sglang.core.WatermarkState(
            max_num_reqs=1,
            context_window=server_window,
            max_contexts_per_req=4096,
            key=row["key"],
            key_b=row["key_b"],
            device="cpu",
            mixing_probability=row["mixing_probability"],
            max_probability=row["max_probability"],
            default_enabled=True,
        )
        self.rows = torch.tensor([0])
        self.state.init_from_prompt(self.rows, [prompt[-server_window:]])
        self.info = types.SimpleNamespace(
            has_watermark_candidates=True,
            watermark_keys=self.state.default_key_buffer[:1],
            watermark_context_windows=torch.tensor([row["context_window"]], dtype=torch.int32),
            watermark_enabled=torch.tensor([True]),
            temperatures=torch.tensor([[row["temperature"]]]),
            top_ks=torch.tensor([top_k]),
            max_top_k=top_k,
            top_ps=torch.tensor([1.0]),
            min_ps=torch.tensor([0.0]),
        )

    def step(self, ordinary: torch.Generator, check: bool) -> bool:
        """Append one token; whether it was forced."""
        core, info = self.sglang.core, self.info
        logits = (self.TABLE[self.ids[-1] % 97] + self.TABLE[self.ids[-2] % 89])[None].clone()
        truncation = (info.temperatures, info.top_ks, info.top_ps, info.min_ps)
        probs = core._truncate_probabilities(logits.clone(), *truncation)
        recorded = int(self.state.num_watermarked_contexts[0])
        contexts = self.state.contexts_tail(self.rows, info.watermark_context_windows)
        self.state.force(logits, self.rows, info)
        forced = int(self.state.num_watermarked_contexts[0]) > recorded
        token = int(logits.argmax() if forced else torch.multinomial(probs, 1, generator=ordinary))
        if forced and check:
            assert self._kernels_pick(probs, core._hash_contexts(*contexts)) == token
        self.ids.append(token)
        self.state.append(self.rows, torch.tensor([token]))
        return forced

    def _kernels_pick(self, probs: torch.Tensor, hashes: torch.Tensor) -> int:
        """By the Triton kernels of `select_watermark_tokens_triton`, which itself insists on CUDA."""
        selector = self.sglang.selector
        keys_b, thresholds = self.state._dual_key_rows(self.rows)
        none = torch.zeros(1, dtype=torch.int64)
        splits = selector.watermark_selector_num_splits(VOCAB)
        scores, tokens = torch.empty(splits), torch.empty(splits, dtype=torch.int32)
        picked = torch.empty(1, dtype=torch.int32)
        b = (keys_b, thresholds) if self.dual else (none, none)
        selector._watermark_partial_argmax_kernel[(1, splits)](
            probs.float(),
            hashes,
            self.info.watermark_keys,
            *b,
            scores,
            tokens,
            vocab_size=VOCAB,
            num_splits=splits,
            BLOCK_SIZE=selector._BLOCK_SIZE,
            DUAL_KEY=self.dual,
        )
        selector._watermark_finalize_argmax_kernel[(1,)](
            scores, tokens, picked, num_splits=splits, BLOCK_SIZE=1 << (splits - 1).bit_length()
        )
        return int(picked[0])


def documents(sglang: Any, rng: random.Random) -> dict[str, Any]:
    one, two = "0123456789abcdef", "fedcba9876543210"
    # prompt, reply, key, key_b, server's window, request's window, temperature, share of A, max probability
    plans: Iterable[tuple[int, int, str, str | None, int, int, float, float, float]] = (
        (12, 160, one, None, 4, 4, 1.0, 0.5, 1.0),
        (2, 120, "deadbeef", None, 4, 4, 0.7, 0.5, 1.0),
        (9, 160, "f00dfacecafebeef", None, 4, 2, 1.0, 0.5, 1.0),
        (9, 200, "1", None, 1, 1, 1.0, 0.5, 1.0),
        (12, 160, one, two, 4, 4, 1.0, 0.5, 1.0),
        (12, 160, "abcdef", "77", 2, 2, 1.0, 0.2, 1.0),
        (3, 100, "ffffffffffffffff", "8000000000000000", 8, 8, 1.0, 0.7, 1.0),
        (12, 160, one, None, 2, 2, 1.0, 0.5, 0.5),
    )
    made = []
    for number, (before, length, key, key_b, server, window, temperature, share, gate) in enumerate(plans):
        prompt = [rng.randrange(VOCAB) for _ in range(before)]
        row: dict[str, Any] = {"key": key, "key_b": key_b, "context_window": window, "temperature": temperature}
        row |= {"mixing_probability": share, "max_probability": gate}
        engine = Engine(sglang, prompt, row, server, VOCAB - 1 if number == 3 else 200)
        ordinary = torch.Generator().manual_seed(number)
        row["forced"] = sum(engine.step(ordinary, step < CHECKED_PICKS) for step in range(length))
        row |= {"prompt": prompt, "completion": engine.ids[before:]}
        dual = {"key_b": key_b, "mixing_probability": share} if key_b else {}
        for name, given in (("with_prompt", prompt), ("without_prompt", [])):
            found = sglang.detector.detect(
                row["completion"], key=key, prompt_token_ids=given, context_window=window, **dual
            )
            row[name] = {
                statistic: {"n": sums.num_contexts, "score": sums.score, "log_p": sums.log_p_value}
                for statistic in ("combined", "key_a_partition", "key_b_partition")
                if (sums := getattr(found, statistic)) is not None
            }
        made.append(row)
    return {"source": "SGLang 0.5.23, see make_sglang.py; log_p is natural", "documents": made}


def main() -> None:
    sglang, rng = import_sglang(Path(sys.argv[1])), random.Random(20261105)
    for name, make in (("hashes", hashes), ("documents", documents)):
        text = json.dumps(make(sglang, rng), separators=(",", ":"))
        (HERE / f"sglang_{name}.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
