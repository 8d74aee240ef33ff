"""Where a student begins: a teacher with layers taken out, any model, or nothing at all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spiritsafe.errors import BadInput
from spiritsafe.teachers import load_tokenizer, load_weights
from spiritsafe.tokens import tokenizer_hash
from spiritsafe.train._config import StudentConfig
from spiritsafe.train._examples import Example
from spiritsafe.train._preflight import real_vocabulary

__all__ = [
    "Source",
    "Student",
    "even_layers",
    "influence_layers",
    "init_student",
    "load_source",
    "prune_layers",
    "save_student",
]

_SCRATCH_CONTEXT = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """An untrained student in fp32. `kept_layers` are indices into the pruned model's layers; None if not pruned."""

    model: Any
    tokenizer: Any
    kept_layers: tuple[int, ...] | None
    description: str


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What a student is made from: a loaded model and its tokenizer, or a tokenizer alone for `scratch`.

    context: the most positions the model takes.  revision: identifies the weights (or the tokenizer).
    """

    name: str
    tokenizer: Any
    model: Any | None
    context: int
    revision: str


def load_source(config: StudentConfig, teacher_source: str | None = None) -> Source:
    """Load what `config` starts from.

    teacher_source: weights to prune, and the tokenizer of a scratch student, unless `config` names its own.

    Raises:
        BadInput: the source is missing or cannot be loaded.
    """
    if config.init == "scratch":
        name = config.tokenizer or config.source or teacher_source
        if name is None:
            raise BadInput("student.init: scratch needs a tokenizer; set student.tokenizer to a folder, file or hub id")
        tokenizer = load_tokenizer(name)
        return Source(name, tokenizer, None, _SCRATCH_CONTEXT, tokenizer_hash(tokenizer))
    name = (config.source or teacher_source) if config.init == "prune" else config.init
    if name is None:
        raise BadInput("student.init: prune needs weights; set student.source to a GGUF file, a folder or a hub id")
    weights = load_weights(name, dtype="float32", device="cpu")
    return Source(name, weights.tokenizer, weights.model, weights.context, weights.revision)


def init_student(config: StudentConfig, source: Source, calibration: Sequence[Example] = (), seed: int = 0) -> Student:
    """Build the student that `config` describes, ready to train on the CPU. Uses up `source` unless it prunes.

    calibration: some training examples, for `strategy: influence`.

    Raises:
        BadInput: the source has fewer layers than are to be kept, or its layers cannot be found.
    """
    if source.model is None:
        return _scratch(config, source.tokenizer, seed)
    name, total = Path(source.name).name, _depth(source.model)
    if config.init != "prune":
        return Student(source.model.requires_grad_(True), source.tokenizer, None, f"{name}, all {total} layers")
    kept = config.layers or max(2, round(total * 2 / 3))
    if kept > total:
        raise BadInput(f"student.layers: {kept}, but {source.name} has {total} layers; keep at most {total}")
    if config.strategy == "influence":
        keep = influence_layers(source.model, kept, calibration)
    else:
        keep = even_layers(total, kept)
    model = prune_layers(source.model, keep)
    return Student(model, source.tokenizer, keep, f"{name}, {kept} of {total} layers ({config.strategy})")


def even_layers(total: int, n: int) -> tuple[int, ...]:
    """n of `total` layer indices, evenly spaced, first and last among them (n ≥ 2)."""
    if not 2 <= n <= total:
        raise ValueError(f"cannot keep {n} of {total} layers")
    return tuple((2 * i * (total - 1) + n - 1) // (2 * (n - 1)) for i in range(n))


@torch.inference_mode()
def influence_layers(model: Any, n: int, calibration: Sequence[Example]) -> tuple[int, ...]:
    """n layers that change their input most: lowest mean cosine of output with input (ShortGPT; Men et al., 2024).

    First and last stay.
    """
    if not calibration:
        raise BadInput("student.strategy: influence needs training examples to look at; use strategy: even")
    total = _depth(model)
    cosine = torch.zeros(total, dtype=torch.float64)
    model.eval()
    for example in calibration:
        ids = np.concatenate([example.prompt_ids, example.completion_ids])
        tokens = torch.as_tensor(ids, dtype=torch.long, device=model.device)[None]
        states = model.base_model(tokens, output_hidden_states=True, use_cache=False).hidden_states
        for layer in range(total):
            cosine[layer] += (
                torch.cosine_similarity(states[layer].float(), states[layer + 1].float(), dim=-1).mean().cpu()
            )
    middle = sorted(range(1, total - 1), key=lambda layer: float(cosine[layer]))
    return tuple(sorted([0, *middle[: n - 2], total - 1]))


def prune_layers(model: Any, keep: Sequence[int]) -> Any:
    """A copy of a transformers decoder with only the layers `keep`, in that order; `model` is left as it was."""
    holder, attribute = _layer_list(model)
    layers = getattr(holder, attribute)
    total = len(layers)
    setattr(holder, attribute, nn.ModuleList(layers[i] for i in keep))
    try:
        pruned = copy.deepcopy(model)
    finally:
        setattr(holder, attribute, layers)
    config = pruned.config.get_text_config()
    config.num_hidden_layers = len(keep)
    for name, value in config.to_dict().items():
        if name != "num_hidden_layers" and isinstance(value, list | tuple) and len(value) == total:
            setattr(config, name, [value[i] for i in keep])  # one entry a layer: layer_types and the like
    new_holder, _ = _layer_list(pruned)
    for index, layer in enumerate(getattr(new_holder, attribute)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    return pruned.requires_grad_(True)


def save_student(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write weights as `dtype`, config and tokenizer with its chat template, as plain transformers loads them.

    Converts `model` itself, so its training is over.
    """
    from transformers.utils import logging

    model.to("cpu", dtype).eval()
    model.config.use_cache = model.generation_config.use_cache = True
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if bar:
            logging.enable_progress_bar()
    tokenizer.save_pretrained(folder)


def _scratch(config: StudentConfig, tokenizer: Any, seed: int) -> Student:
    from transformers import LlamaConfig, LlamaForCausalLM

    if not (config.hidden and config.heads and config.layers):
        raise BadInput("student.init: scratch needs hidden, layers and heads")
    llama = LlamaConfig(
        vocab_size=real_vocabulary(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=-(-config.hidden * 8 // 3 // 32) * 32,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=_SCRATCH_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(llama)
    return Student(model, tokenizer, None, f"scratch, {config.layers} layers of {config.hidden}")


def _depth(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def _layer_list(model: Any) -> tuple[nn.Module, str]:
    """The module that holds the decoder layers, and the attribute they are under (`layers`, `h` …)."""
    depth = _depth(model)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return module, name
    raise BadInput(
        f"{type(model).__name__}: its {depth} layers were not found; layers of this architecture cannot be pruned"
    )
