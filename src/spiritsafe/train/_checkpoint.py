"""Checkpoints without pickle: safetensors for tensors, JSON for the rest, whole or absent."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spiritsafe.errors import BadInput
from spiritsafe.runs import atomic_write

__all__ = ["State", "load_checkpoint", "save_checkpoint", "trim_log"]


@dataclass(frozen=True, slots=True)
class State:
    """What to go on from. The data order and random numbers follow from the seed and the step, so they are not here."""

    fingerprint: str
    step: int = 0
    tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0


def save_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer, state: State) -> None:
    """Write `folder`/step-N and then point `folder`/latest.json at it; older steps are removed."""
    from safetensors.torch import save_file

    name = f"step-{state.step:06d}"
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    parameters = _trainable(module)
    save_file({key: p.detach().contiguous() for key, p in parameters.items()}, target / "model.safetensors")
    moments: dict[str, Tensor] = {}
    for key, p in parameters.items():
        moments |= {f"{field}/{key}": value for field, value in optimizer.state.get(p, {}).items()}
    save_file(moments, target / "optimizer.safetensors")
    for file in target.iterdir():
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    atomic_write(folder / "latest.json", json.dumps({"checkpoint": name, **asdict(state)}) + "\n")
    for old in folder.glob("step-*"):
        if old.name != name:
            shutil.rmtree(old)


def load_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer, fingerprint: str) -> State | None:
    """Restore the latest checkpoint into `module` and `optimizer`; None if there is none made from the same inputs.

    Raises:
        BadInput: the checkpoint is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    pointer = folder / "latest.json"
    if not pointer.exists():
        return None
    try:
        found = json.loads(pointer.read_bytes())
        source = folder / found.pop("checkpoint")
        state = State(**found)
        if state.fingerprint != fingerprint:
            return None
        weights, moments = load_file(source / "model.safetensors"), load_file(source / "optimizer.safetensors")
        with torch.no_grad():
            for key, p in _trainable(module).items():
                p.copy_(weights[key])
                fields = ("exp_avg", "exp_avg_sq", "step")
                optimizer.state[p] = {f: moments[f"{f}/{key}"].to(p.device) for f in fields}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"{folder}: damaged checkpoint ({error}); delete {folder} to train from the start") from None
    return state


def trim_log(log: Path, step: int) -> None:
    """Drop lines after `step`, and a torn last line: training goes on from there."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break
    atomic_write(log, "".join(line + "\n" for line in kept))


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
