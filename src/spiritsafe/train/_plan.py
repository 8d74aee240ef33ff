"""The steps of a run, known before the first one: what is trained on when, and how fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from spiritsafe.records import SparseLogprobs
from spiritsafe.train._config import TrainConfig
from spiritsafe.train._data import Batch, collate, micro_batches, plan_epoch
from spiritsafe.train._device import Place
from spiritsafe.train._examples import Example

__all__ = ["Plan"]


class Plan:
    """Which examples each step trains on, at what rate, and this process's share of them as batches."""

    def __init__(
        self,
        examples: Sequence[Example],
        targets_of: Callable[[str], SparseLogprobs] | None,
        config: TrainConfig,
        place: Place,
    ) -> None:
        self.examples, self.targets_of, self.config, self.place = examples, targets_of, config, place
        self.lengths = [len(e.prompt_ids) + len(e.completion_ids) for e in examples]
        epochs = [plan_epoch(self.lengths, config.batch_tokens, config.seed, e) for e in range(config.epochs)]
        self.steps = [(epoch, step) for epoch, plan in enumerate(epochs) for step in plan]

    @property
    def total(self) -> int:
        return len(self.steps)

    def completion_tokens(self, step: int) -> int:
        return sum(len(self.examples[i].completion_ids) for i in self.steps[step][1])

    def tokens(self, step: int) -> int:
        return sum(self.lengths[i] for i in self.steps[step][1])

    def batches(self, step: int) -> tuple[list[Batch], float]:
        """This process's micro-batches and what to divide their loss by. Every process gets one at least."""
        mine = self.steps[step][1][self.place.rank :: self.place.world]
        # Data parallelism averages gradients, so each process's share is scaled up to make the average a sum.
        normaliser = self.completion_tokens(step) / self.place.world
        if not mine:
            mine, normaliser = self.steps[step][1][:1], math.inf
        groups = micro_batches(mine, self.lengths, self.config.micro_tokens)
        batches = [collate([self.examples[i] for i in group], self.targets_of) for group in groups]
        return [batch.to(self.place.device) for batch in batches], normaliser

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to `final_lr_share`."""
        config = self.config
        warmup = config.warmup if config.warmup >= 1 else math.ceil(config.warmup * self.total)
        if step < warmup:
            return config.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, self.total - warmup)
        low = config.final_lr_share
        return config.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))
