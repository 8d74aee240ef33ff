"""Batched generation: requests join a running batch as they come and leave it as they finish.

A prompt is prefilled with others that wait (padded on the right, so causality is all the masking it needs; equal
prompts once), its keys and values move into the running batch's buffers, and every step then feeds one token per row.
Not thread-safe: one thread drives an engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from spiritsafe.errors import BadInput
from spiritsafe.records import FinishReason, Sampling, SparseLogprobs
from spiritsafe.teachers._cache import SlotCache, prefill_cache
from spiritsafe.teachers._sampling import LogprobRows, choose, generator, top_logprobs
from spiritsafe.teachers._text import TextStream
from spiritsafe.teachers._weights import Weights
from spiritsafe.tokens import token_bytes_table

__all__ = ["Delta", "Engine", "GenerateJob", "Generation", "LogitsProcessor", "Ticket"]

LogitsProcessor = Callable[[Sequence[int], Sequence[int], torch.Tensor], torch.Tensor]
"""(prompt ids, ids generated so far, float32 logits (V,)) → logits (V,). Runs before temperature."""

_ATTENTIONS = {"full_attention", "sliding_attention"}
_PREFILL_TOKENS = 2048  # per step, so that a flood of prompts cannot stall the rows that run


@dataclass(frozen=True, slots=True)
class GenerateJob:
    """One completion to generate. `index` tells the n replies of one seed apart."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    index: int = 0
    ignore_eos: bool = False
    processor: LogitsProcessor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """What one step added to a reply. `text` lags behind the tokens by unfinished characters and stop strings."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: SparseLogprobs | None


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A finished completion. `token_ids` and `logprobs` hold every generated token, the end-of-turn token included;
    `text` ends before a stop string."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: SparseLogprobs | None


@dataclass(slots=True, eq=False)
class Ticket:
    """A job in the engine. `on_delta` and `on_done` are called by the thread that steps it."""

    job: GenerateJob
    on_done: Callable[[Generation], None]
    on_delta: Callable[[Delta], None] | None
    text: TextStream
    random: Any
    tokens: list[int] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    logprobs: list[LogprobRows] = field(default_factory=list)
    cancelled: bool = False
    finished: bool = False

    def cancel(self) -> None:
        """Give the row up at the next step; no callback follows. Safe from any thread."""
        self.cancelled = True


class Engine:
    """Generates for many jobs at once.

    max_batch: rows that run together; more wait. Logits processors see and return the real vocabulary only.

    Raises:
        BadInput: the architecture keeps other state than keys and values.
    """

    def __init__(self, weights: Weights, max_batch: int = 32) -> None:
        config = weights.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or {"full_attention"})
        if not kinds <= _ATTENTIONS or getattr(config, "alibi", False) or config.is_encoder_decoder:
            raise BadInput(
                f"{weights.source}: the engine runs decoders with rotary or learned positions, not"
                f" {config.model_type} ({', '.join(sorted(kinds))}); serve it with another engine and give its base_url"
            )
        self.weights = weights
        self.max_batch = max_batch
        self._mixed = len(kinds) > 1
        # a config without layer types means its window, if it has one, for every layer
        windowed = "sliding_attention" in kinds or not getattr(config, "layer_types", None)
        self._window: int | None = getattr(config, "sliding_window", None) if windowed else None
        self._table = token_bytes_table(weights.tokenizer)
        self._cache = SlotCache(weights.device)
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def check(self, job: GenerateJob) -> None:
        """Raise `BadInput` if the job cannot be run."""
        prompt, wanted, context = len(job.prompt_ids), job.sampling.max_tokens, self.weights.context
        if prompt == 0:
            raise BadInput("the prompt is empty; send at least one token")
        if wanted < 1:
            raise BadInput(f"max_tokens is {wanted}; ask for at least 1")
        if prompt + wanted > context:
            raise BadInput(
                f"the prompt's {prompt} tokens and max_tokens {wanted} exceed the model's context of {context};"
                " shorten the prompt or lower max_tokens"
            )
        vocab = self.weights.vocab_size
        if not all(0 <= token < vocab for token in job.prompt_ids):
            raise BadInput(f"the prompt has token ids outside the vocabulary of {vocab}; use the model's own tokenizer")

    def submit(
        self,
        job: GenerateJob,
        on_done: Callable[[Generation], None],
        on_delta: Callable[[Delta], None] | None = None,
    ) -> Ticket:
        """Queue a job.

        Raises:
            BadInput: it cannot be run (see `check`).
        """
        self.check(job)
        text = TextStream(self.weights.tokenizer, job.sampling.stop)
        ticket = Ticket(job, on_done, on_delta, text, generator(job.sampling.seed, job.index))
        self._waiting.append(ticket)
        return ticket

    def generate(self, jobs: Sequence[GenerateJob]) -> list[Generation]:
        """Run jobs to their end, in the order given.

        Raises:
            BadInput: a job cannot be run; none has been started then.
        """
        for job in jobs:
            self.check(job)
        done: dict[int, Generation] = {}
        for number, job in enumerate(jobs):
            self.submit(job, lambda generation, number=number: done.__setitem__(number, generation))  # type: ignore[misc]
        while len(done) < len(jobs):
            self.step()
        return [done[number] for number in range(len(jobs))]

    def clear(self) -> None:
        """Forget all jobs, without callbacks."""
        self._waiting.clear()
        self._running.clear()
        self._cache = SlotCache(self.weights.device)

    @torch.inference_mode()
    def step(self) -> None:
        """Admit what waits, then give every running row one more token."""
        for row in reversed(range(len(self._running))):
            if self._running[row].cancelled:
                self._leave(row)
        fresh = self._next_to_admit()
        if fresh:
            self._admit(fresh)
        elif self._running:
            self._advance()

    def _next_to_admit(self) -> list[Ticket]:
        fresh: list[Ticket] = []
        budget = _PREFILL_TOKENS
        while self._waiting and len(self._running) + len(fresh) < self.max_batch:
            ticket = self._waiting[0]
            budget -= len(ticket.job.prompt_ids)
            if budget < 0 and fresh:
                break
            self._waiting.popleft()
            if not ticket.cancelled:
                fresh.append(ticket)
        return fresh

    def _admit(self, fresh: list[Ticket]) -> None:
        """Prefill new rows, prompts of like length together, and give each its first token."""
        prompts = sorted({t.job.prompt_ids for t in fresh}, key=len)
        for group in _groups(prompts):
            logits_BV, filled = self._prefill(group)
            place = {prompt: row for row, prompt in enumerate(group)}
            rows = [t for t in fresh if t.job.prompt_ids in place]
            self._cache.reserve(len(rows), len(group[0]) + 1, filled)
            for ticket in rows:
                self._cache.add(filled, place[ticket.job.prompt_ids], len(ticket.job.prompt_ids))
            first = len(self._running)
            self._running += rows
            self._extend(first, logits_BV[[place[t.job.prompt_ids] for t in rows]])

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, Any]:
        device, longest = self.weights.device, max(map(len, prompts))
        ids_BT = torch.tensor([[*p, *[p[-1]] * (longest - len(p))] for p in prompts], device=device)
        ends = sorted({len(p) - 1 for p in prompts})
        filled = prefill_cache()
        logits_BEV = self.weights.model(
            input_ids=ids_BT,
            position_ids=torch.arange(longest, device=device).expand(len(prompts), -1),
            past_key_values=filled,
            use_cache=True,
            logits_to_keep=torch.tensor(ends, device=device),
        ).logits
        at = torch.tensor([ends.index(len(p) - 1) for p in prompts], device=device)
        return self._real(logits_BEV[torch.arange(len(prompts), device=device), at]), filled

    def _advance(self) -> None:
        cache, positions_B1 = self._cache.step()
        ids_B1 = torch.tensor([[t.tokens[-1]] for t in self._running], device=self.weights.device)
        logits_B1V = self.weights.model(
            input_ids=ids_B1,
            position_ids=positions_B1,
            attention_mask=self._mask(),
            past_key_values=cache,
            use_cache=True,
        ).logits
        self._extend(0, self._real(logits_B1V[:, -1]))

    def _mask(self) -> Any:
        windowed = self._cache.mask(self._window)
        if not self._mixed or self._window is None:
            return windowed
        full = self._cache.mask()
        if full is None and windowed is None:
            return None
        return {"full_attention": full, "sliding_attention": windowed}

    def _real(self, logits_BV: torch.Tensor) -> torch.Tensor:
        return logits_BV[:, : self.weights.vocab_size].float()

    def _extend(self, first: int, logits_BV: torch.Tensor) -> None:
        """Give running rows `first` … their next token from logits (B, V); rows that end leave."""
        rows = self._running[first : first + logits_BV.shape[0]]
        shaped = logits_BV
        if any(t.job.processor for t in rows):
            shaped = logits_BV.clone()
            for index, ticket in enumerate(rows):
                if ticket.job.processor:
                    shaped[index] = ticket.job.processor(ticket.job.prompt_ids, ticket.tokens, logits_BV[index])
        sampling = [t.job.sampling for t in rows]
        tokens = choose(
            shaped,
            [s.temperature for s in sampling],
            [s.top_p for s in sampling],
            [float(t.random.random()) if t.job.sampling.temperature > 0 else 0.0 for t in rows],
        )
        self._note_logprobs(rows, logits_BV, tokens)
        for index in reversed(range(len(rows))):
            if self._give(rows[index], tokens[index]):
                self._leave(first + index)

    def _note_logprobs(self, rows: Sequence[Ticket], logits_BV: torch.Tensor, tokens: Sequence[int]) -> None:
        asked = [index for index, t in enumerate(rows) if t.job.sampling.logprobs]
        if not asked:
            return
        widest = max(rows[index].job.sampling.logprobs for index in asked)
        chosen = torch.tensor([tokens[index] for index in asked], device=logits_BV.device)
        noted = top_logprobs(logits_BV[asked], chosen, widest)
        for place, index in enumerate(asked):
            rows[index].logprobs.append(noted.row(place, rows[index].job.sampling.logprobs))

    def _give(self, ticket: Ticket, token: int) -> bool:
        """Add a token to a row; True if that ends it."""
        job = ticket.job
        ticket.tokens.append(token)
        ended = token in self.weights.eos_ids and not job.ignore_eos
        follow = ticket.on_delta is not None or job.sampling.stop
        text = ticket.text.push(token) if follow and not ended else ""
        full = len(ticket.tokens) >= job.sampling.max_tokens
        over = ended or ticket.text.stopped or full
        if follow and over:
            text += ticket.text.finish()
        ticket.parts.append(text)
        if ticket.on_delta:
            logprobs = LogprobRows.sparse(ticket.logprobs[-1:], [token], self._table) if ticket.logprobs else None
            ticket.on_delta(Delta(text, (token,), logprobs))
        if over:
            reason: FinishReason = "stop" if ended or ticket.text.stopped else "length"
            ticket.finished = True
            ticket.on_done(self._finished(ticket, reason, followed=bool(follow)))
        return over

    def _finished(self, ticket: Ticket, reason: FinishReason, followed: bool) -> Generation:
        tokens = ticket.tokens
        if followed:
            text = "".join(ticket.parts)
        else:
            text = self.weights.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        logprobs = LogprobRows.sparse(ticket.logprobs, tokens, self._table) if ticket.logprobs else None
        return Generation(text, tuple(tokens), reason, logprobs)

    def _leave(self, row: int) -> None:
        self._cache.remove(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last


def _groups(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Cut prompts, sorted by length, where padding would cost more than another forward pass saves."""
    groups: list[list[tuple[int, ...]]] = []
    for prompt in reversed(prompts):
        if groups and len(groups[-1][0]) <= 1.25 * len(prompt) + 16:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups
