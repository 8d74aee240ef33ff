"""What the teacher thought of given completions: exact top-k log-probabilities, in one forward pass each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from spiritsafe.errors import BadInput
from spiritsafe.records import SparseLogprobs
from spiritsafe.teachers._sampling import LogprobRows, top_logprobs
from spiritsafe.teachers._weights import Weights
from spiritsafe.tokens import token_bytes_table

__all__ = ["iter_top_k_logprobs", "top_k_logprobs"]

_LOGITS = 1 << 26  # float32 logits held at once: 256 MiB
_ROWS = 512  # positions put through the softmax at once


def top_k_logprobs(
    weights: Weights, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], k: int, *, batch_tokens: int = 2048
) -> list[SparseLogprobs]:
    """Log-probabilities of completions, in the order given; see `iter_top_k_logprobs`."""
    done = dict(iter_top_k_logprobs(weights, pairs, k, batch_tokens=batch_tokens))
    return [done[index] for index in range(len(pairs))]


def iter_top_k_logprobs(
    weights: Weights, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], k: int, *, batch_tokens: int = 2048
) -> Iterator[tuple[int, SparseLogprobs]]:
    """Score completions, pairs of like length together; yields (index of the pair, its log-probabilities).

    pairs: (prompt ids, completion ids), neither empty.  k: alternatives per position; 0 gives `top` of shape (T, 0).
    The result has one position per completion token: natural log, temperature 1, float32 softmax over the real
    vocabulary, ids and bytes.  batch_tokens: padded tokens per forward pass.

    Raises:
        BadInput: a prompt or completion is empty, or longer than the model's context.
    """
    for index, (prompt, completion) in enumerate(pairs):
        if not prompt or not completion:
            raise BadInput(f"pair {index} to score has an empty prompt or completion; drop it")
        if len(prompt) + len(completion) > weights.context:
            raise BadInput(
                f"pair {index} to score has {len(prompt) + len(completion)} tokens,"
                f" more than the model's context of {weights.context}; drop or shorten it"
            )
    table = token_bytes_table(weights.tokenizer)
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]), reverse=True)
    while order:
        longest = sum(map(len, pairs[order[0]]))
        # each scored position costs a row of logits, so a large vocabulary makes for smaller batches
        room = min(batch_tokens, max(_LOGITS // weights.vocab_size, longest))
        size = max(1, room // longest)
        batch, order = order[:size], order[size:]
        yield from zip(batch, _score([pairs[index] for index in batch], weights, k, table), strict=True)


@torch.inference_mode()
def _score(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], weights: Weights, k: int, table: list[bytes]
) -> Iterator[SparseLogprobs]:
    device = weights.device
    rows = [[*prompt, *completion] for prompt, completion in pairs]
    longest = max(map(len, rows))
    # padded on the right, behind everything that is scored: causality alone keeps it out
    ids_BT = torch.tensor([row + [row[-1]] * (longest - len(row)) for row in rows], device=device)
    first = min(len(prompt) for prompt, _ in pairs) - 1
    logits_BTV = weights.model(
        input_ids=ids_BT,
        position_ids=torch.arange(longest, device=device).expand(len(rows), -1),
        use_cache=False,
        logits_to_keep=torch.arange(first, longest - 1, device=device),
    ).logits[..., : weights.vocab_size]
    for logits_TV, (prompt, completion) in zip(logits_BTV, pairs, strict=True):
        start = len(prompt) - 1 - first
        wanted_TV = logits_TV[start : start + len(completion)]
        chosen_T = torch.tensor(list(completion), device=device)
        parts = [
            top_logprobs(wanted_TV[at : at + _ROWS], chosen_T[at : at + _ROWS], k)
            for at in range(0, len(completion), _ROWS)
        ]
        yield LogprobRows.sparse(parts, completion, table)
