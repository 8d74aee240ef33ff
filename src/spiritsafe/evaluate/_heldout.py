"""The held-out answers (and a few that trained), and by which yardstick teacher and student can be compared on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from spiritsafe.errors import BadInput
from spiritsafe.exchanges import read_exchanges
from spiritsafe.records import Exchange
from spiritsafe.runs import Run
from spiritsafe.tokens import prompt_ids
from spiritsafe.train import Example, Vocabulary, encode_exchange

if TYPE_CHECKING:
    from spiritsafe.teachers import Weights

__all__ = ["LOWER_BOUND", "Yardstick", "calibration", "held_out", "yardstick"]

LOWER_BOUND = "top-k+tail lower bound"

# Below this share of positions with a known teacher likelihood, the student's tokens are not the teacher's tokens.
_MIN_RESOLVED = 0.9


def held_out(run: Run, max_tokens: int | None) -> list[Exchange]:
    """The held-out exchanges of the curated set, in order, up to about `max_tokens` completion tokens.

    Raises:
        BadInput: there are none.
    """
    found: list[Exchange] = []
    tokens = 0
    for exchange in read_exchanges(run.curated):
        if exchange.split != "holdout" or not exchange.reply.text.strip():
            continue
        found.append(exchange)
        tokens += exchange.usage.output_tokens
        if max_tokens is not None and tokens >= max_tokens:
            break
    if not found:
        raise BadInput(f"{run.curated}: no held-out exchanges; raise evaluate.holdout and collect into a new run")
    return found


def calibration(run: Run, student: Weights, n: int) -> list[Example]:
    """The first n exchanges that trained, in the student's tokens."""
    vocabulary = Vocabulary.of(student.tokenizer)
    trained = (e for e in read_exchanges(run.curated) if e.split == "train")
    return [encode_exchange(e, vocabulary) for e in islice(trained, n)]


@dataclass(frozen=True, slots=True, eq=False)
class Yardstick:
    """E exchanges ready to score. `units` is what NLL is divided by: completion tokens, or bytes of text.

    student: in the student's tokens (its untrained start shares them).  teacher: for the teacher's weights, if local.
    teacher_nll: (E,) as the API reported it, where there are no weights.  keep: positions that count, by exchange.
    """

    exchanges: list[Exchange]
    student: list[Example]
    keep: list[NDArray[np.bool_]]
    units: NDArray[np.float64]
    unit: Literal["token", "byte"]
    kl_kind: str | None
    teacher: list[Example] | None = None
    teacher_nll: NDArray[np.float64] | None = None

    @property
    def prompts(self) -> NDArray[np.intp]:
        """(E,) index of each exchange's prompt: answers to one prompt are resampled together."""
        _, index = np.unique([e.prompt.id for e in self.exchanges], return_inverse=True)
        return np.asarray(index, np.intp)


def yardstick(exchanges: Sequence[Exchange], student: Weights, teacher: Weights | None) -> Yardstick:
    """The sharpest comparison these exchanges allow.

    Whole distributions where the teacher's weights are here and share the tokenizer; the API's top-k where they are
    not here; bytes where the tokenizers differ; else the student alone.
    """
    vocabulary = Vocabulary.of(student.tokenizer)
    examples = [encode_exchange(e, vocabulary) for e in exchanges]
    if teacher is not None:
        if teacher.tokenizer_hash == student.tokenizer_hash:
            return _exact(exchanges, examples, teacher)
        return _by_bytes(exchanges, examples, teacher)
    resolved = [np.isfinite(e.targets.chosen) for e in examples if e.targets is not None]
    if resolved and np.concatenate(resolved).mean() >= _MIN_RESOLVED:
        return _from_api(exchanges, examples)
    spelt = [e for e in exchanges if _spelt_out(e)]
    if spelt:
        return _from_api_by_bytes(spelt, vocabulary)
    return Yardstick(list(exchanges), examples, _all(examples), _tokens(_all(examples)), "token", None)


def _exact(exchanges: Sequence[Exchange], examples: list[Example], teacher: Weights) -> Yardstick:
    # The teacher reads the prompt through its own template, even where the student's differs.
    own = [
        replace(example, prompt_ids=np.asarray(prompt_ids(teacher.tokenizer, e.prompt.messages), np.int32))
        for e, example in zip(exchanges, examples, strict=True)
    ]
    keep = _all(examples)
    return Yardstick(list(exchanges), examples, keep, _tokens(keep), "token", "exact", teacher=own)


def _by_bytes(exchanges: Sequence[Exchange], examples: list[Example], teacher: Weights) -> Yardstick:
    vocabulary = Vocabulary.of(teacher.tokenizer)
    own = [encode_exchange(e, vocabulary) for e in exchanges]
    return Yardstick(list(exchanges), examples, _all(examples), _bytes(exchanges), "byte", None, teacher=own)


def _from_api(exchanges: Sequence[Exchange], examples: list[Example]) -> Yardstick:
    """Only positions whose likelihood the teacher told, and the same ones for every model."""
    pairs = [(x, e) for x, e in zip(exchanges, examples, strict=True) if e.targets is not None]
    chosen = [e.targets.chosen for _, e in pairs if e.targets is not None]
    keep = [np.isfinite(row) for row in chosen]
    nll = np.array([-np.where(k, row, 0).sum(dtype=np.float64) for k, row in zip(keep, chosen, strict=True)])
    used = [i for i, k in enumerate(keep) if k.any()]
    keep = [keep[i] for i in used]
    return Yardstick(
        [pairs[i][0] for i in used],
        [pairs[i][1] for i in used],
        keep,
        _tokens(keep),
        "token",
        LOWER_BOUND,
        teacher_nll=nll[used],
    )


def _from_api_by_bytes(exchanges: list[Exchange], vocabulary: Vocabulary) -> Yardstick:
    """The text alone, without the end of the turn: an API's log-probabilities seldom include it."""
    examples, nll = [], []
    for e in exchanges:
        prompt = np.asarray(prompt_ids(vocabulary.tokenizer, e.prompt.messages), np.int32)
        examples.append(Example(e.id, prompt, np.asarray(vocabulary.encode(e.reply.text), np.int32)))
        assert e.reply.logprobs is not None
        nll.append(-float(e.reply.logprobs.chosen.sum(dtype=np.float64)))
    keep = _all(examples)
    return Yardstick(exchanges, examples, keep, _bytes(exchanges), "byte", None, teacher_nll=np.array(nll))


def _spelt_out(e: Exchange) -> bool:
    """The teacher's log-probabilities cover exactly the text."""
    logprobs = e.reply.logprobs
    if logprobs is None or logprobs.token_bytes is None:
        return False
    return b"".join(logprobs.token_bytes) == e.reply.text.encode()


def _all(examples: Sequence[Example]) -> list[NDArray[np.bool_]]:
    return [np.ones(len(e.completion_ids), bool) for e in examples]


def _tokens(keep: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
    return np.array([k.sum() for k in keep], np.float64)


def _bytes(exchanges: Sequence[Exchange]) -> NDArray[np.float64]:
    return np.array([len(e.reply.text.encode()) for e in exchanges], np.float64)
