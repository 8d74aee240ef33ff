"""What a recipe may say about the student and about training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from spiritsafe.config import StrictModel

__all__ = ["LoraConfig", "StudentConfig", "TrainConfig"]


class StudentConfig(StrictModel):
    """Where the student's weights begin.

    init: `prune` keeps `layers` of the layers of `source` (the teacher's weights unless said otherwise), `scratch`
    starts from random weights, anything else is a folder, a GGUF file or a hub id whose weights are taken as they are.
    strategy: which layers `prune` keeps: `even`ly spaced with both ends, or by `sensitivity` (those go whose absence
    alone moves the model least, by KL on some training answers; both ends stay; a far better start).
    hidden, heads, tokenizer: only for `scratch`; the tokenizer defaults to the teacher's.
    """

    init: str = "prune"
    layers: int | None = Field(None, ge=2)
    strategy: Literal["even", "sensitivity"] = "sensitivity"
    source: str | None = None
    hidden: int | None = Field(None, ge=8)
    heads: int | None = Field(None, ge=1)
    tokenizer: str | None = None

    @model_validator(mode="after")
    def _keys_fit_the_init(self) -> StudentConfig:
        if not self.init:
            raise ValueError("init is empty; write prune, scratch, or the path or hub id of a model")
        if self.init != "scratch" and (self.hidden or self.heads):
            raise ValueError("hidden and heads belong to init: scratch")
        if self.init == "scratch" and not (self.hidden and self.heads and self.layers):
            raise ValueError("init: scratch needs hidden, layers and heads")
        if self.hidden and self.heads and self.hidden % (2 * self.heads):
            raise ValueError(f"hidden must be a multiple of 2 × heads = {2 * self.heads}")
        if self.init not in ("prune", "scratch") and self.layers:
            raise ValueError("layers belongs to init: prune or init: scratch; to prune this model name it as source")
        return self


class LoraConfig(StrictModel):
    """Low-rank adapters on every linear layer of the body; merged into the weights when the student is saved."""

    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class TrainConfig(StrictModel):
    """How to train.

    objective: `sft` is cross-entropy on completions; `topk` is forward KL on the teacher's top-k plus one tail bucket.
    batch_tokens: completion and prompt tokens per optimiser step; micro_tokens: per forward pass, padding included.
    warmup: optimiser steps, or a share of all steps below 1.  temperature: of the KL (not of sampling).
    precision: `auto` is bf16 matrix products over fp32 weights where the hardware has them, fp32 elsewhere.
    checkpoint_every: optimiser steps between checkpoints.  max_length: tokens; longer examples are cut at the end.
    """

    objective: Literal["sft", "topk"] = "topk"
    epochs: int = Field(3, ge=1)
    lr: float = Field(2.0e-4, gt=0)
    batch_tokens: int = Field(2048, ge=1)
    micro_tokens: int = Field(2048, ge=1)
    warmup: float = Field(0.05, ge=0)
    final_lr_share: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = Field(1.0, gt=0)
    kd_weight: float = Field(0.9, ge=0)
    ce_weight: float = Field(0.1, ge=0)
    k: int = Field(64, ge=1, le=1024)
    temperature: float = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    lora: LoraConfig | None = None
    checkpoint_every: int = Field(50, ge=1)
    seed: int = 0
    max_length: int = Field(2048, ge=8)

    @model_validator(mode="after")
    def _something_is_learnt(self) -> TrainConfig:
        if self.kd_weight + self.ce_weight == 0:
            raise ValueError("kd_weight and ce_weight are both 0; nothing would be learnt")
        return self
