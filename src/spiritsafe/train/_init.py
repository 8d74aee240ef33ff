"""Where a student begins: a teacher with layers taken out, any model, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spiritsafe.errors import BadInput
from spiritsafe.teachers import load_tokenizer, load_weights
from spiritsafe.tokens import tokenizer_hash
from spiritsafe.train._config import StudentConfig
from spiritsafe.train._examples import Example
from spiritsafe.train._preflight import real_vocabulary
from spiritsafe.train._prune import depth, even_layers, prune_layers, sensitivity_layers

__all__ = [
    "Source",
    "Student",
    "init_student",
    "load_source",
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


def init_student(
    config: StudentConfig,
    source: Source,
    calibration: Sequence[Example] = (),
    seed: int = 0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Student:
    """Build the student that `config` describes, ready to train on the CPU. Uses up `source` unless it prunes.

    calibration: some training examples, for `strategy: sensitivity`.  autocast: the precision of its passes.

    Raises:
        BadInput: the source has fewer layers than are to be kept, or its layers cannot be found.
    """
    if source.model is None:
        return _scratch(config, source.tokenizer, seed)
    name, total = Path(source.name).name, depth(source.model)
    if config.init != "prune":
        return Student(source.model.requires_grad_(True), source.tokenizer, None, f"{name}, all {total} layers")
    kept = config.layers or max(2, round(total * 2 / 3))
    if kept > total:
        raise BadInput(f"student.layers: {kept}, but {source.name} has {total} layers; keep at most {total}")
    if config.strategy == "sensitivity" and kept < total:
        vocab = real_vocabulary(source.tokenizer)
        keep = sensitivity_layers(source.model, kept, calibration, vocab, autocast)
    else:
        keep = even_layers(total, kept)
    model = prune_layers(source.model, keep)
    return Student(model, source.tokenizer, keep, f"{name}, {kept} of {total} layers ({config.strategy})")


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
