"""Twins and canaries of `proof_audit_null`: fresh coins and draws over what each innocent answered once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from benchmarks.audit_null_answers import Asked, records

__all__ = ["canaries", "canaries_stopped", "twins", "twins_by_text", "twins_stopped", "twins_stopping"]

Trials = Iterator[Mapping[str, float]]
_BATCH = 8


def twins(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
    """Every pair asked: the binomial tail."""
    yield from _judged(asked.twins, _answers(asked, asked.twins, "twins"), random, trials)


def twins_by_text(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
    """What each innocent wrote for the prompts of the pairs, one reply a prompt."""
    said = []
    for one in asked.innocents:
        written = asked.answers(one)["completions"]
        replies = {f"req_{number}": {"replies": [written[str(number + 1)]["text"]]} for number in range(len(written))}
        said.append(records(asked.twins_text, replies))
    yield from _judged(asked.twins_text, said, random, trials)


def twins_stopping(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
    """Looked at after every batch, stopped at the best moment: an e-value has to stand that."""
    said = _answers(asked, asked.twins_stopping, "twins")
    for answers in itertools.islice(itertools.cycle(said), trials):
        test = asked.twins_stopping.redrawn(random)
        until = range(_BATCH, len(answers) + 1, _BATCH)
        yield {"": min(test.judge(answers[:n]).log10_p for n in until)}


def twins_stopped(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
    """The budget ran out after some of the pairs."""
    for answers in itertools.islice(itertools.cycle(_answers(asked, asked.twins, "twins")), trials):
        many = int(random.integers(1, len(answers)))
        yield {"": asked.twins.redrawn(random).judge(answers[:many]).log10_p}


def canaries(by: str) -> Any:
    def run(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
        test = asked.canaries_text if by == "canaries-text" else asked.canaries
        yield from _judged(test, _answers(asked, test, by), random, trials)

    return run


def canaries_stopped(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
    """The budget ran out: what was not asked has the last rank."""
    for answers in itertools.islice(itertools.cycle(_answers(asked, asked.canaries, "canaries")), trials):
        many = int(random.integers(1, len(answers)))
        yield {"": asked.canaries.redrawn(random).judge(answers[:many]).log10_p}


def _answers(asked: Asked, test: Any, name: str) -> list[Any]:
    return [records(test, asked.answers(one)[name]) for one in asked.innocents]


def _judged(test: Any, said: list[Any], random: np.random.Generator, trials: int) -> Trials:
    for answers in itertools.islice(itertools.cycle(said), trials):
        yield {"": test.redrawn(random).judge(answers).log10_p}
