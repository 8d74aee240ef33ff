"""One pass of a model over the held-out answers, and what two such passes say about each other.

A pass keeps the final hidden states of the completion positions only, (N, H) in fp32: a few megabytes where the
logits would be gigabytes. Logits are made again from them, a chunk of positions at a time, so models can be loaded
one after the other and still be compared over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spiritsafe.train import Example, Head

__all__ = ["Pass", "Scores", "run_pass", "score"]

_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What a model did on E examples: hidden (N, H) fp32 at the positions that predict the N completion tokens."""

    hidden: Tensor
    head: Head

    def logprobs(self, span: slice, vocab: int) -> Tensor:
        """(n, vocab) fp32 log-softmax over the real vocabulary."""
        head = self.head
        logits = (self.hidden[span] * head.scale) @ head.weight[:vocab].T
        if head.bias is not None:
            logits += head.bias[:vocab] * head.scale
        if head.softcap is not None:
            logits = logits.div_(head.softcap).tanh_() * head.softcap
        return logits.log_softmax(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Sums by example, (E,) float64. taught: positions that have a teacher distribution; kl and agree run over them."""

    tokens: NDArray[np.float64]
    nll: NDArray[np.float64]
    taught: NDArray[np.float64]
    kl: NDArray[np.float64]
    agree: NDArray[np.float64]

    def rows(self, chosen: Sequence[int]) -> Scores:
        """The same sums for some of the examples."""
        return Scores(*(getattr(self, name)[chosen] for name in ("tokens", "nll", "taught", "kl", "agree")))

    @property
    def distance(self) -> float:
        """From the teacher: mean KL, or mean NLL of its answers where there is no KL."""
        if self.taught.sum():
            return float(self.kl.sum() / self.taught.sum())
        return float(self.nll.sum() / self.tokens.sum())


@torch.inference_mode()
def run_pass(model: Any, examples: Sequence[Example], vocab: int, batch_tokens: int) -> Pass:
    """Run `model` over the examples, shortest first. Its head is cut to the first `vocab` ids.

    What all prompts begin with (a template's system prompt) is run once and its keys and values shared.
    """
    device = model.device
    shared = _common_prefix([e.prompt_ids for e in examples])
    prefix = torch.from_numpy(examples[0].prompt_ids[:shared].astype(np.int64))[None].to(device)
    tails = [np.concatenate([e.prompt_ids[shared:], e.completion_ids]).astype(np.int64) for e in examples]
    lengths = [len(tail) for tail in tails]
    states: list[Tensor] = [torch.empty(0)] * len(examples)
    for batch in _batches(sorted(range(len(tails)), key=lengths.__getitem__), lengths, batch_tokens):
        ids_BT = pad_sequence([torch.from_numpy(tails[i]) for i in batch], batch_first=True).to(device)
        mask_BT = pad_sequence([torch.ones(shared + lengths[i], dtype=torch.long) for i in batch], batch_first=True)
        cache = None
        if shared:
            cache = model.base_model(input_ids=prefix, use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(batch))
        body = model.base_model(
            input_ids=ids_BT, attention_mask=mask_BT.to(device), past_key_values=cache, use_cache=cache is not None
        )
        for row, i in enumerate(batch):
            # the hidden state at position t predicts token t + 1
            first = lengths[i] - len(examples[i].completion_ids) - 1
            states[i] = body.last_hidden_state[row, first : lengths[i] - 1].float()
    head = Head.of(model, vocab)
    bias = None if head.bias is None else head.bias.float()
    return Pass(torch.cat(states), Head(head.weight.float(), head.vocab, bias, head.scale, head.softcap))


def _common_prefix(prompts: Sequence[NDArray[np.int32]]) -> int:
    """How many tokens all prompts begin with, leaving at least one of each; 0 where there is nothing to share."""
    if len(prompts) < 2:
        return 0
    width = min(len(p) for p in prompts) - 1
    if width <= 0:
        return 0
    same = np.all(np.stack([p[:width] for p in prompts]) == prompts[0][:width], axis=0)
    return int(width if same.all() else same.argmin())


def _batches(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Runs of `order` (ascending length) whose padded size stays within `batch_tokens`; at least one each."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * lengths[i] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def score(
    passed: Pass, examples: Sequence[Example], keep: Sequence[NDArray[np.bool_]], teacher: Pass | None = None
) -> Scores:
    """NLL of the completions, and forward KL and top-1 agreement with the teacher.

    keep: by example, (C,) which completion positions count.
    teacher: its pass over the same examples: KL is then exact, over the vocabulary both share. Without it KL is taken
    on each example's top-k plus one bucket for the rest, which is a lower bound of the full KL (grouping outcomes never
    increases a divergence), and agreement is with the first of the top-k.
    """
    vocab = passed.head.vocab if teacher is None else min(passed.head.vocab, teacher.head.vocab)
    device = passed.hidden.device
    labels = torch.from_numpy(np.concatenate([e.completion_ids for e in examples]).astype(np.int64)).to(device)
    targets = None if teacher is not None else _targets(examples, device)
    columns: list[Tensor] = []
    step = max(1, _CHUNK_BYTES // (4 * vocab))
    for start in range(0, len(labels), step):
        span = slice(start, start + step)
        log_q = passed.logprobs(span, vocab)
        nll = -log_q.gather(1, labels[span, None]).squeeze(1)
        if teacher is not None:
            kl, agree, taught = _full(log_q, teacher.logprobs(span, vocab))
        elif targets is not None:
            kl, agree, taught = _bucketed(log_q, targets[0][span], targets[1][span])
        else:
            kl = agree = taught = torch.zeros_like(nll)
        columns.append(torch.stack([nll, taught, kl, agree], 1).double())
    table = torch.cat(columns).cpu().numpy()
    counted = np.concatenate(list(keep)).astype(np.float64)
    table = np.concatenate([np.ones((len(table), 1)), table], 1) * counted[:, None]
    edges = np.cumsum([0, *(len(e.completion_ids) for e in examples)])[:-1]
    return Scores(*np.add.reduceat(table, edges, axis=0).T)


def _full(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    agree = (log_q.argmax(1) == log_p.argmax(1)).float()
    kl = (log_p.exp() * (log_p - log_q)).sum(1).clamp_min(0)
    return kl, agree, torch.ones_like(kl)


def _bucketed(log_q: Tensor, ids: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL on the top-k plus one tail bucket. Overwrites `log_q`."""
    known = ids >= 0
    taught = known.any(1)
    agree = log_q.argmax(1) == ids[:, 0]
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)[known]
    q_top = torch.zeros_like(log_p).masked_scatter(known, log_q[rows, ids[known]])
    # the tail as a sum of its own terms: one minus something close to one would be rounding noise
    log_q[rows, ids[known]] = -torch.inf
    log_q_tail = log_q.logsumexp(1)
    p_top = torch.where(known, log_p.exp(), 0.0)
    p_tail = (1 - p_top.double().sum(1)).clamp_min(0).float()
    kl = torch.where(p_top > 0, p_top * (log_p - q_top), 0.0).sum(1)
    tail = p_tail * (p_tail.clamp_min(1e-30).log() - log_q_tail)
    kl += torch.where((p_tail > 0) & log_q_tail.isfinite(), tail, 0.0)
    return kl.clamp_min(0) * taught, (agree & taught).float(), taught.float()


def _targets(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor] | None:
    """The examples' top-k as (N, K) ids and log-probabilities, padded with -1 and -inf; None if no example has any."""
    width = max((e.targets.top.shape[1] for e in examples if e.targets is not None), default=0)
    if width == 0:
        return None
    total = sum(len(e.completion_ids) for e in examples)
    ids, logprobs = torch.full((total, width), -1, dtype=torch.long), torch.full((total, width), -torch.inf)
    at = 0
    for e in examples:
        if e.targets is not None and e.targets.ids is not None:
            k = e.targets.top.shape[1]
            span = slice(at, at + len(e.completion_ids))
            ids[span, :k] = torch.from_numpy(e.targets.ids.astype(np.int64))
            logprobs[span, :k] = torch.from_numpy(np.array(e.targets.top, np.float32))
        at += len(e.completion_ids)
    return ids.to(device), logprobs.to(device)
