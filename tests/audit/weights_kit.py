"""Small decoders as dictionaries of arrays, written as safetensors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Arrays = dict[str, Tensor]


def names(layer: int) -> tuple[str, str]:
    return f"model.layers.{layer}.mlp.gate_proj.weight", f"model.layers.{layer}.mlp.up_proj.weight"


def decoder(rng: np.random.Generator, layers: int = 4, h: int = 48, d: int = 24, vocab: int = 60) -> Arrays:
    arrays = {"model.embed_tokens.weight": torch.tensor(rng.normal(size=(vocab, d)), dtype=torch.float32)}
    for layer in range(layers):
        for name in names(layer):
            arrays[name] = torch.tensor(rng.normal(size=(h, d)), dtype=torch.float32)
    return arrays


def moved(arrays: Arrays, rng: np.random.Generator, by: float) -> Arrays:
    return {n: t + by * torch.tensor(rng.normal(size=t.shape), dtype=torch.float32) for n, t in arrays.items()}


def keep_layers(arrays: Arrays, keep: list[int]) -> Arrays:
    out = {"model.embed_tokens.weight": arrays["model.embed_tokens.weight"]}
    for new, old in enumerate(keep):
        out |= {n: arrays[o] for n, o in zip(names(new), names(old), strict=True)}
    return out


def reordered(arrays: Arrays, rng: np.random.Generator, units: bool = True, coordinates: bool = False) -> Arrays:
    d = arrays["model.embed_tokens.weight"].shape[1]
    columns = torch.tensor(rng.permutation(d)) if coordinates else torch.arange(d)
    out = {n: t[:, columns] for n, t in arrays.items()}
    for layer in range((len(arrays) - 1) // 2):
        h = len(arrays[names(layer)[0]])
        rows = torch.tensor(rng.permutation(h)) if units else torch.arange(h)
        for name in names(layer):
            out[name] = out[name][rows]
    return out


def save(folder: Path, arrays: Arrays) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in arrays.items()}, folder / "model.safetensors")
    return folder


def suspect(arrays: Arrays) -> Any:
    """What lineage looks at in a suspect that was loaded."""
    return SimpleNamespace(weights=SimpleNamespace(model=SimpleNamespace(state_dict=lambda: arrays), source="suspect"))
