"""What must fit before a minute is spent on training: tokenizer, template, vocabulary, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spiritsafe.errors import BadInput
from spiritsafe.records import Exchange
from spiritsafe.tokens import template_hash
from spiritsafe.train._examples import Example, Vocabulary

__all__ = ["check_head", "check_topk", "has_targets", "real_vocabulary"]

# Sampled text is not always split the way a tokenizer would split it, but nearly always.
_SAME_SPLIT = 0.9
_USE_SFT = "set train.objective: sft, which needs only the text"


def real_vocabulary(tokenizer: Any) -> int:
    """Ids that stand for something; embedding matrices are often padded beyond them."""
    return max(int(index) for index in tokenizer.get_vocab().values()) + 1


def check_head(model: Any, tokenizer: Any, where: str) -> None:
    """Raises BadInput if the model has fewer outputs than its tokenizer has ids."""
    rows, vocab = int(model.get_output_embeddings().weight.shape[0]), real_vocabulary(tokenizer)
    if rows < vocab:
        raise BadInput(
            f"{where}: the model has {rows} outputs but its tokenizer {vocab} ids;"
            " resize its embeddings or give the tokenizer that belongs to it"
        )


def has_targets(examples: Sequence[Example]) -> int:
    """How many examples carry a teacher distribution at some position."""
    return sum(
        e.targets is not None and e.targets.ids is not None and bool((e.targets.ids >= 0).any()) for e in examples
    )


def check_topk(exchanges: Sequence[Exchange], examples: Sequence[Example], vocabulary: Vocabulary, where: str) -> None:
    """Log-probabilities of the teacher's tokens must mean the student's tokens, after the same prompt.

    Raises:
        BadInput: another tokenizer or chat template, or ids beyond the student's vocabulary.
    """
    size, template = real_vocabulary(vocabulary.tokenizer), template_hash(vocabulary.tokenizer)
    for exchange, example in zip(exchanges, examples, strict=True):
        teacher = exchange.teacher
        if teacher.tokenizer_hash not in (None, vocabulary.hash):
            raise BadInput(
                f"{where}: {teacher.model} uses another tokenizer ({teacher.tokenizer_hash:.12}) than the student"
                f" ({vocabulary.hash:.12}), so its log-probabilities are about other tokens; {_USE_SFT}"
            )
        if teacher.template_hash not in (None, template):
            raise BadInput(
                f"{where}: {teacher.model} saw its prompts through another chat template ({teacher.template_hash:.12})"
                f" than the student's ({template:.12}), which biases every log-probability; give the student the"
                f" teacher's template, or {_USE_SFT}"
            )
        highest = (
            0 if example.targets is None or example.targets.ids is None else int(example.targets.ids.max(initial=0))
        )
        if highest >= size or int(example.completion_ids.max(initial=0)) >= size:
            raise BadInput(
                f"{where}: exchange {exchange.id} has token id {highest}, the student's vocabulary ends at {size - 1};"
                f" take the teacher's tokenizer for the student, or {_USE_SFT}"
            )
    _check_unknown_tokenizer(exchanges, examples, vocabulary, where)


def _check_unknown_tokenizer(
    exchanges: Sequence[Exchange], examples: Sequence[Example], vocabulary: Vocabulary, where: str
) -> None:
    """An API that does not tell its tokenizer: do its tokens, by their bytes, split the text as the student's do?"""
    same = total = 0
    for exchange, example in zip(exchanges, examples, strict=True):
        if exchange.teacher.tokenizer_hash is None and exchange.reply.logprobs is not None:
            body = [i for i in example.completion_ids.tolist() if i != vocabulary.end_of_turn]
            total += 1
            same += example.targets is not None and body == vocabulary.encode(exchange.reply.text)
    if total and same < _SAME_SPLIT * total:
        raise BadInput(
            f"{where}: the teacher's tokens match the student's tokenizer in only {same} of {total} answers, so it"
            f" uses another one; {_USE_SFT}"
        )
