"""The training set: examples, the order they are seen in, and micro-batches as tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spiritsafe.errors import BadInput
from spiritsafe.exchanges import read_exchanges
from spiritsafe.records import Exchange, SparseLogprobs
from spiritsafe.runs import Run
from spiritsafe.train._examples import Example, Vocabulary, encode_exchange

__all__ = ["Batch", "collate", "load_examples", "micro_batches", "plan_epoch"]

# Steps whose examples are sorted by length together: less padding, and still a different mix every epoch.
_WINDOW = 8


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One forward pass. Rows are padded on the right, so causal attention needs no mask.

    input_ids: (B, T).  positions: (N,) into B·T, the hidden states that predict a completion token.  labels: (N,).
    teacher_ids, teacher_logprobs: (N, K), or None under `sft`.  tokens: prompt and completion, without padding.
    """

    input_ids: Tensor
    positions: Tensor
    labels: Tensor
    teacher_ids: Tensor | None
    teacher_logprobs: Tensor | None
    tokens: int

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.input_ids.to(device),
            self.positions.to(device),
            self.labels.to(device),
            self.teacher_ids.to(device) if self.teacher_ids is not None else None,
            self.teacher_logprobs.to(device) if self.teacher_logprobs is not None else None,
            self.tokens,
        )


def load_examples(run: Run, vocabulary: Vocabulary, max_length: int) -> tuple[list[Exchange], list[Example]]:
    """The curated exchanges of the train split and the examples they make, in the same order.

    Completions are cut at `max_length` tokens in all; exchanges whose prompt alone is that long are left out.

    Raises:
        BadInput: nothing is left to train on, or two exchanges have the same id.
    """
    exchanges: list[Exchange] = []
    examples: list[Example] = []
    for exchange in read_exchanges(run.curated):
        if exchange.split != "train":
            continue
        example = _cut(encode_exchange(exchange, vocabulary), max_length)
        if len(example.completion_ids) > 0:
            exchanges.append(exchange)
            examples.append(example)
    if not examples:
        raise BadInput(
            f"{run.curated}: no exchange of the train split fits in train.max_length {max_length};"
            " collect more, curate less or raise it"
        )
    if len({e.id for e in examples}) < len(examples):
        raise BadInput(f"{run.curated}: exchanges share an id, so it holds some twice; curate again")
    return exchanges, examples


def plan_epoch(lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Optimiser steps of one epoch, each the indices of examples with about `batch_tokens` tokens.

    Shuffled from (seed, epoch) alone, so a resumed run sees what it would have seen.
    """
    rng = random.Random(f"{seed}/{epoch}")  # noqa: S311
    order = list(range(len(lengths)))
    rng.shuffle(order)
    steps: list[list[int]] = []
    window: list[int] = []
    budget = 0
    for position, i in enumerate(order):
        window.append(i)
        budget += lengths[i]
        if budget >= _WINDOW * batch_tokens or position == len(order) - 1:
            window.sort(key=lambda j: (lengths[j], j))
            steps += _split(window, lengths, batch_tokens, padded=False)
            window, budget = [], 0
    rng.shuffle(steps)
    return steps


def micro_batches(step: Sequence[int], lengths: Sequence[int], micro_tokens: int) -> list[list[int]]:
    """The examples of a step, split by length so that a padded micro-batch holds at most `micro_tokens`."""
    return _split(sorted(step, key=lambda i: (lengths[i], i)), lengths, micro_tokens, padded=True)


def collate(examples: Sequence[Example], targets_of: Callable[[str], SparseLogprobs] | None, pad: int = 0) -> Batch:
    """Tensors of some examples; `targets_of(id)` gives the teacher's (C, K) under `topk`."""
    width = max(len(e.prompt_ids) + len(e.completion_ids) for e in examples)
    input_ids = np.full((len(examples), width), pad, np.int64)
    positions = []
    for row, e in enumerate(examples):
        start, end = len(e.prompt_ids), len(e.prompt_ids) + len(e.completion_ids)
        input_ids[row, :start], input_ids[row, start:end] = e.prompt_ids, e.completion_ids
        positions.append(row * width + np.arange(start - 1, end - 1))
    labels = np.concatenate([e.completion_ids for e in examples]).astype(np.int64)
    teacher_ids = teacher_logprobs = None
    if targets_of is not None:
        targets = [targets_of(e.id) for e in examples]
        ids = [t.ids[: len(e.completion_ids)] for t, e in zip(targets, examples, strict=True) if t.ids is not None]
        teacher_ids = torch.from_numpy(np.concatenate(ids).astype(np.int64))
        teacher_logprobs = torch.from_numpy(
            np.concatenate([t.top[: len(e.completion_ids)] for t, e in zip(targets, examples, strict=True)])
        )
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(labels),
        teacher_ids,
        teacher_logprobs,
        tokens=sum(len(e.prompt_ids) + len(e.completion_ids) for e in examples),
    )


def _split(ordered: Sequence[int], lengths: Sequence[int], budget: int, *, padded: bool) -> list[list[int]]:
    groups: list[list[int]] = []
    size = 0
    for i in ordered:
        # Ordered by length, so the newest example is the widest and sets the padding of its group.
        grown = (len(groups[-1]) + 1) * lengths[i] if groups and padded else size + lengths[i]
        if not groups or grown > budget:
            groups.append([])
            size = 0
        groups[-1].append(i)
        size += lengths[i]
    return groups


def _cut(example: Example, max_length: int) -> Example:
    room = max(0, max_length - len(example.prompt_ids))
    if len(example.completion_ids) <= room:
        return example
    targets = example.targets
    if targets is not None and targets.ids is not None:
        targets = SparseLogprobs(targets.chosen[:room], targets.top[:room], targets.ids[:room])
    return Example(example.id, example.prompt_ids, example.completion_ids[:room], targets)
