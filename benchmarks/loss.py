"""The fused top-k loss against plain chunked cross-entropy, and against TRL's dense GKD loss where TRL is at hand.

One output head of 151,936 × 896 in fp32, 1,024 positions, forward and backward to hidden states and weight. Every
measurement is a fresh process: a warm-up on 32 positions, then one timed step, whose extra memory is the growth of the
process's peak resident size over what it held before. Rounds alternate; medians are reported.

  ours    teacher top-64 plus tail (0.9) and cross-entropy (0.1), from a cache
  ce      cross-entropy alone in checkpointed chunks of 256 positions: what training without a teacher costs
  trl     generalized_jsd_loss(beta=0): full forward KL, teacher logits from a live head of the same size

TRL pins much, so it is no dependency: `pip install --no-deps --target DIR trl==1.16.0`, then `--trl-path DIR`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings

VOCAB, HIDDEN, TOKENS, K = 151_936, 896, 1024, 64
TIME_VS_CE, MEMORY_VS_CE, SPEED_VS_TRL, MEMORY_VS_TRL = 1.1, 0.5, 1.3, 0.25
PEER = "1.16.0"


def measure(side: str, trl_path: str | None) -> dict[str, float]:
    import torch

    torch.manual_seed(0)
    weight = (torch.randn(VOCAB, HIDDEN) * 0.02).requires_grad_()
    hidden = torch.randn(TOKENS, HIDDEN).requires_grad_()
    labels = torch.randint(VOCAB, (TOKENS,))
    step = {"ours": _ours, "ce": _ce, "trl": _trl}[side](trl_path)
    step(hidden[:32].detach().requires_grad_(), weight, labels[:32])
    weight.grad = None
    before = _reset_peak()
    started = time.perf_counter()
    step(hidden, weight, labels)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "extra_mib": (_status("VmHWM") - before) / 1024}


def _ours(_: str | None):  # type: ignore[no-untyped-def]
    import torch

    from spiritsafe.train import Head, LossWeights, fused_loss

    ids = torch.rand(TOKENS, VOCAB // 64).topk(K, 1).indices * 64
    logprobs = torch.log_softmax(torch.randn(TOKENS, K) * 2, 1) - 0.05

    def step(hidden, weight, labels) -> None:  # type: ignore[no-untyped-def]
        n = len(labels)
        loss, _ = fused_loss(hidden, Head(weight, VOCAB), labels, n, LossWeights(), ids[:n], logprobs[:n])
        loss.backward()

    return step


def _ce(_: str | None):  # type: ignore[no-untyped-def]
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    def chunk(hidden, weight, labels):  # type: ignore[no-untyped-def]
        return cross_entropy(hidden @ weight.T, labels, reduction="sum")

    def step(hidden, weight, labels) -> None:  # type: ignore[no-untyped-def]
        parts = zip(hidden.split(256), labels.split(256), strict=True)
        (sum(checkpoint(chunk, h, weight, y, use_reentrant=False) for h, y in parts) / len(labels)).backward()

    return step


def _trl(path: str | None):  # type: ignore[no-untyped-def]
    import torch

    sys.path.insert(0, path or "")
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gkd.gkd_trainer import GKDTrainer
    teacher_weight, teacher_hidden = torch.randn(VOCAB, HIDDEN) * 0.02, torch.randn(TOKENS, HIDDEN)

    def step(hidden, weight, labels) -> None:  # type: ignore[no-untyped-def]
        with torch.no_grad():
            teacher_logits = (teacher_hidden[: len(labels)] @ teacher_weight.T)[None]
        GKDTrainer.generalized_jsd_loss((hidden @ weight.T)[None], teacher_logits, labels[None], beta=0.0).backward()

    return step


def _status(field: str) -> int:
    """KiB, from the kernel's account of this process."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def _reset_peak() -> int:
    """Let the peak start again from what is resident now; returns that, in KiB."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return _status("VmRSS")


def _trl_version(path: str | None) -> str | None:
    from importlib.metadata import distributions

    paths = {"path": [path]} if path else {}
    return next((d.version for d in distributions(name="trl", **paths)), None)  # type: ignore[arg-type]


def main(trl_path: str | None, rounds: int) -> int:
    found = _trl_version(trl_path)
    assert found in (None, PEER), f"trl {found} is installed, but the numbers are for {PEER}"
    sides = ["ours", "ce", *(["trl"] if found else [])]
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            command = [sys.executable, __file__, "--side", side, *(["--trl-path", trl_path] if trl_path else [])]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            results[side].append(json.loads(output.splitlines()[-1]))
    median = {side: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for side, rows in results.items()}
    ours, ce = median["ours"], median["ce"]
    report: dict[str, object] = {
        "benchmark": "loss",
        "peer": f"trl {found}" if found else "chunked cross-entropy (trl not installed)",
        "shape": {"vocab": VOCAB, "hidden": HIDDEN, "tokens": TOKENS, "k": K},
        "median": {side: {key: round(value, 2) for key, value in row.items()} for side, row in median.items()},
        "time_vs_ce": round(ours["seconds"] / ce["seconds"], 3),
        "memory_vs_ce": round(ours["extra_mib"] / ce["extra_mib"], 3),
    }
    targets = {"time_vs_ce": f"<= {TIME_VS_CE}", "memory_vs_ce": f"<= {MEMORY_VS_CE}"}
    met = ours["seconds"] <= TIME_VS_CE * ce["seconds"] and ours["extra_mib"] <= MEMORY_VS_CE * ce["extra_mib"]
    if found:
        trl = median["trl"]
        report["ratio"] = round(trl["seconds"] / ours["seconds"], 2)
        report["memory_vs_trl"] = round(ours["extra_mib"] / trl["extra_mib"], 3)
        targets |= {"ratio": f">= {SPEED_VS_TRL}", "memory_vs_trl": f"<= {MEMORY_VS_TRL}"}
        met = met and trl["seconds"] >= SPEED_VS_TRL * ours["seconds"]
        met = met and ours["extra_mib"] <= MEMORY_VS_TRL * trl["extra_mib"]
    print(json.dumps(report | {"targets": targets, "met": met, "rounds": rounds, "load": round(os.getloadavg()[0], 1)}))
    return 0 if met else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-path", help="where trl==1.16.0 was installed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["ours", "ce", "trl"])
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.trl_path)))
    else:
        sys.exit(main(options.trl_path, options.rounds))
