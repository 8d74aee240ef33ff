"""Makes vllm_*.json by running vLLM 0.33.0's own watermark files, on a CPU; the JSON is data and is committed.

    pip download --no-deps vllm==0.33.0 && unzip vllm-*.whl -d WHEEL && pip install --no-deps triton
    TRITON_INTERPRET=1 python tests/watermark/vectors/make_vllm.py WHEEL

What runs is vLLM's: `PhiloxPRF`, `GumbelWatermarker`, `DualKeyGumbelWatermarker`, both detectors, the GPU sampler's own
`_get_contexts` and `_get_repeated_contexts` (its CPU branch), and the Triton kernels `philox_gumbel_sample` and
`gumbel_sample` in Triton's interpreter. What is stubbed is what those files import around them: the logger, the config
decorator, the sampler's base class. The u of the Triton kernel are read through a kernel that calls its device functions.
"""

from __future__ import annotations

import json
import math
import random
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
VOCAB = 61


def import_vllm(wheel: Path) -> None:
    """Make the wheel's watermark modules importable without the rest of vLLM."""
    from importlib.metadata import distributions

    import triton
    import triton.language as tl
    from pydantic.dataclasses import dataclass

    (version,) = [d.version for d in distributions(name="vllm", path=[str(wheel)])]
    assert version == "0.33.0", version
    packages = [
        "",
        ".config",
        ".v1",
        ".v1.worker",
        ".v1.worker.gpu",
        ".v1.worker.gpu.sample",
        ".v1.sample",
        ".v1.sample.ops",
    ]
    for name in ("vllm" + package for package in packages):
        module = types.ModuleType(name)
        module.__path__ = [str(wheel / name.replace(".", "/"))]
        sys.modules[name] = module

    def stub(name: str, **names: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(names)

    quiet = SimpleNamespace(warning_once=lambda *_, **__: None)
    stub("vllm.logger", init_logger=lambda _: quiet)
    stub("vllm.config.utils", config=dataclass)
    stub("vllm.triton_utils", HAS_TRITON=True, triton=triton, tl=tl)
    stub("vllm.sampling_params", SamplingParams=object)
    stub("vllm.v1.sample.ops.topk_topp_sampler", apply_top_k_top_p=None)
    stub("vllm.v1.worker.gpu.buffer_utils", UvaBackedTensor=object)
    stub("vllm.v1.worker.gpu.sample.sampler", Sampler=object)


def prf_rows() -> list[dict[str, Any]]:
    import torch
    import triton
    import triton.language as tl
    from vllm.v1.watermarking.prfs import create_prf
    from vllm.v1.worker.gpu.sample import watermark as kernels

    # Triton's interpreter sees a kernel's globals, not what it closes over.
    globals().update(
        context_state=kernels._philox_context_state,
        candidate_words=kernels._philox_candidate_words,
        to_uniform=kernels._uint32_to_uniform,
    )

    @triton.jit
    def u_kernel(contexts, tokens, out, low, high, WIDTH: tl.constexpr):
        row = tl.program_id(0)
        k0, k1 = low.to(tl.uint32), high.to(tl.uint32)
        s0, s1, s2, s3 = context_state(contexts + row * WIDTH, k0, k1, WIDTH)  # noqa: F821
        token = tl.load(tokens + row + tl.arange(0, 1))
        o0, o1, o2, o3 = candidate_words(token >> 2, s0, s1, s2, s3, k0, k1)  # noqa: F821
        lane = token & 3
        word = tl.where(lane == 0, o0, tl.where(lane == 1, o1, tl.where(lane == 2, o2, o3)))
        tl.store(out + row + tl.arange(0, 1), to_uniform(word))  # noqa: F821

    rows = []
    rng = random.Random(1)
    for width in (1, 2, 3, 4, 5, 8, 17):
        for key in (0, 1, 2**64 - 1, rng.getrandbits(64)):
            contexts = [[rng.randrange(151_936) for _ in range(width)] for _ in range(9)]
            for n in range(min(width, 4) + 1):
                contexts[n][: width - n] = [-1] * (width - n)
            tokens = [rng.randrange(151_936) for _ in contexts]
            tokens[:4], tokens[-1] = [0, 1, 2, 3], 2**31 - 1
            c, t = torch.tensor(contexts), torch.tensor(tokens)
            u = create_prf("philox", key).uniform(c, t.unsqueeze(-1)).squeeze(-1)
            kernel_u = torch.empty(len(tokens))
            u_kernel[(len(tokens),)](c, t, kernel_u, key & 0xFFFFFFFF, key >> 32, WIDTH=width)
            assert torch.equal(u, kernel_u), "vLLM's kernel and its detector disagree"
            rows.append({"key": key, "contexts": contexts, "tokens": tokens, "u": u.tolist()})
    return rows


def pick_rows() -> list[dict[str, Any]]:
    """What the sampler picks from given logits: torch's path and the Triton kernel agree."""
    import torch
    from vllm.v1.watermarking import GumbelWatermarker
    from vllm.v1.worker.gpu.sample.watermark import philox_gumbel_sample

    rows = []
    rng = random.Random(2)
    for key in (7, rng.getrandbits(64)):
        for width in (2, 4):
            contexts = [[rng.randrange(VOCAB) for _ in range(width)] for _ in range(8)]
            contexts[0] = [-1] * width
            logits = [[round(rng.gauss(0, 2), 3) for _ in range(VOCAB)] for _ in contexts]
            c, x = torch.tensor(contexts), torch.tensor(logits)
            picked = GumbelWatermarker(key, width).sample(x, c).token_ids
            assert torch.equal(picked, philox_gumbel_sample(x, c, key))
            rows.append({"key": key, "contexts": contexts, "logits": logits, "picked": picked.tolist()})
    return rows


def reply_rows() -> list[dict[str, Any]]:
    import torch
    from vllm.config.watermarking import WatermarkConfig
    from vllm.v1.watermarking import DualKeyGumbelWatermarkDetector, GumbelWatermarkDetector

    rows = []
    rng = random.Random(3)
    settings: list[dict[str, Any]] = [
        {"algorithm": "gumbel"},
        {"algorithm": "gumbel", "context_width": 2},
        {"algorithm": "gumbel", "context_width": 1, "deduplicate_contexts_max_history": 12},
        {"algorithm": "gumbel", "context_width": 2, "deduplicate_contexts": "none"},
        {"algorithm": "gumbel", "context_width": 2, "deduplicate_contexts": "all"},
        {"algorithm": "dual_key_gumbel"},
        {"algorithm": "dual_key_gumbel", "alpha": 0.3, "context_width": 2},
        {"algorithm": "dual_key_gumbel", "alpha": 0.5, "context_width": 3},
        {"algorithm": "dual_key_gumbel", "alpha": 0.0},
        {"algorithm": "dual_key_gumbel", "alpha": 1.0},
    ]
    for setting in settings:
        config = WatermarkConfig(key=rng.getrandbits(64), **setting)
        prompt = [rng.randrange(VOCAB) for _ in range(9)]
        output, skipped, coins = generate(config, prompt, 90, rng)
        kwargs: dict[str, Any] = {"context_width": config.context_width}
        dedup = config.deduplicate_contexts != "none"
        if config.algorithm == "gumbel":
            detector: Any = GumbelWatermarkDetector(config.key, deduplicate_contexts=dedup, **kwargs)
        else:
            detector = DualKeyGumbelWatermarkDetector(
                config.key, deduplicate_contexts=dedup, alpha=config.alpha, **kwargs
            )
        scores = detector._score_tokens(*detector._prepare_inputs(output)).tolist()
        found = detector.detect(output)
        assert math.isclose(sum(scores), found.score)
        params = {"key": config.key, "context_width": config.context_width, "alpha": config.alpha, **setting}
        rows.append(
            {
                "params": params,
                "prompt": prompt,
                "output": output,
                "unmarked": [i for i, skip in enumerate(skipped) if skip],
                "key_b": coins,
                "detector": {
                    "scores": scores,
                    "score": found.score,
                    "n": found.num_scored_tokens,
                    "p_value": found.p_value,
                },
            }
        )
        assert torch.tensor(output).max() < VOCAB
    return rows


def generate(
    config: Any, prompt: list[int], length: int, rng: random.Random
) -> tuple[list[int], list[bool], list[int]]:
    """One reply through vLLM's contexts, repeated-context mask, watermarker and random sampler; (ids, skipped, B's)."""
    import torch
    from vllm.v1.watermarking import DualKeyGumbelWatermarker, create_watermarker
    from vllm.v1.watermarking.gpu_sampler import GPUWatermarkSampler as Sampler
    from vllm.v1.watermarking.watermarker import RandomSampler

    watermarker = create_watermarker(config)
    table = torch.zeros(1, len(prompt) + length, dtype=torch.int64)
    table[0, : len(prompt)] = torch.tensor(prompt)
    total = torch.tensor([len(prompt)])
    state = SimpleNamespace(
        all_token_ids=SimpleNamespace(gpu=table),
        prompt_len=SimpleNamespace(gpu=torch.tensor([len(prompt)])),
        total_len=SimpleNamespace(gpu=total),
    )
    sampler = SimpleNamespace(
        watermarker=watermarker,
        req_states=state,
        deduplicate_contexts=config.deduplicate_contexts,
        deduplicate_contexts_max_history=config.deduplicate_contexts_max_history,
        num_speculative_tokens=0,
    )
    row = torch.zeros(1, dtype=torch.int64)
    # A small language with few likely words, so that contexts do come back.
    language = torch.tensor([[rng.gauss(0, 2.2) for _ in range(VOCAB)] for _ in range(VOCAB)])
    skipped, coins, last = [], [], prompt[-1]
    for step in range(length):
        contexts = Sampler._get_contexts(sampler, row)
        skip = torch.zeros(1, dtype=torch.bool)
        if config.deduplicate_contexts != "none":
            skip = Sampler._get_repeated_contexts(sampler, row, contexts)
        draw = RandomSampler(row, torch.ones(1), torch.tensor([rng.getrandbits(62)]), torch.tensor([step]))
        logits = language[last][None]
        token = int(watermarker.sample(logits, contexts, draw, skip).token_ids)
        if isinstance(watermarker, DualKeyGumbelWatermarker) and 0 < config.alpha < 1 and not skip:
            routing = watermarker._routing_logits(logits.device).expand(1, -1)
            coins += [step] if int(draw(routing)) else []
        table[0, len(prompt) + step] = token
        total += 1
        skipped.append(bool(skip))
        last = token
    return table[0, len(prompt) :].tolist(), skipped, coins


def main(wheel: Path) -> None:
    import_vllm(wheel)
    files = {"vllm_philox": prf_rows(), "vllm_picks": pick_rows(), "vllm_replies": reply_rows()}
    for name, rows in files.items():
        lines = ",\n".join(json.dumps(row) for row in rows)
        (HERE / f"{name}.json").write_text(f'{{"engine": "vLLM 0.33.0", "rows": [\n{lines}\n]}}\n', encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
