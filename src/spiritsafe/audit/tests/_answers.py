"""What a suspect answered about several candidate texts, read back from a transcript that anybody may have written."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from spiritsafe.audit._types import Record
from spiritsafe.audit.tests._resemblance import resemblance
from spiritsafe.errors import BadInput
from spiritsafe.records import Reply

__all__ = ["NEVER", "answers", "as_json", "by_likelihood", "by_text", "kept"]

NEVER = -math.inf
_LONGEST = 200_000  # characters of a reply: whoever answers with a book costs no verifier its memory


def answers(records: Sequence[Record], test: str, items: Collection[str]) -> dict[str, Mapping[str, Any] | None]:
    """The last line of each item of this test that was asked: what came back, None where it failed.

    Raises:
        BadInput: an item that the test does not have.
    """
    last: dict[str, Mapping[str, Any] | None] = {}
    for record in records:
        if record.test == test:
            if record.item not in items:
                raise BadInput(f"transcript of {test}: item {record.item[:80]!r} is not one of its questions")
            last[record.item] = record.got
    return last


def as_json(logprob: tuple[float, int]) -> list[Any]:
    """(sum of log-probabilities, tokens) for a transcript: null for what JSON cannot say."""
    total, tokens = logprob
    return [float(total) if math.isfinite(total) else None, int(tokens)]


def kept(replies: Sequence[Reply]) -> list[str]:
    """Replies for a transcript: what is looked at of each."""
    return [reply.text[:_LONGEST] for reply in replies]


def by_likelihood(where: str, values: Any, count: int) -> list[float]:
    """Mean log-probability a token of each candidate from `count` values as `as_json` wrote them; `NEVER` for a
    candidate that has no tokens or no probability.

    Raises:
        BadInput: they are of another form.
    """
    if not isinstance(values, list) or len(values) != count:
        raise BadInput(f"{where}: not the log-probabilities of {count} texts")
    return [_mean(where, value) for value in values]


def _mean(where: str, value: Any) -> float:
    try:
        total, tokens = value
        if type(tokens) is int and tokens >= 0 and (total is None or type(total) in (int, float)):
            if total is None or tokens == 0:
                return NEVER
            mean = float(total / tokens)
            if math.isfinite(mean):
                return mean
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadInput(f"{where}: {str(value)[:60]} is not [sum of log-probabilities, tokens]")


def by_text(
    where: str, replies: Any, candidates: Sequence[str], known: dict[tuple[str, ...], list[float]] | None = None
) -> list[float]:
    """How much the replies resemble each candidate.

    known: what was computed before, by texts: a run that may stop early judges all answers again after each batch.

    Raises:
        BadInput: `replies` is no list of texts.
    """
    if not isinstance(replies, list) or not all(isinstance(text, str) and len(text) <= _LONGEST for text in replies):
        raise BadInput(f"{where}: replies are not a list of texts, of {_LONGEST:,} characters at most")
    if known is None:
        return resemblance(replies, candidates)
    texts = (str(len(replies)), *replies, *candidates)
    if texts not in known:
        known[texts] = resemblance(replies, candidates)
    return known[texts]
