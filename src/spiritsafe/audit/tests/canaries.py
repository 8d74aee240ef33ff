"""Canaries: does the suspect rank the published answer to an invented question above the sealed ones?

Null hypothesis. The suspect does not depend on which of the N answers was published. The draw was uniform, so the rank
of the published one among N, by any score that does not know it, is uniform too, ties counted against it: p ≤ rank/N.
It does not matter how plausible the answers are or what else the suspect has learned.

Score.    By likelihood: an answer's mean log-probability a token, given the question.
          By text: how much the suspect's own replies to the question resemble it (`_resemblance`), summed over the
          samples. An answer that nothing resembles has rank N.
Several.  Draws are independent, so are ranks. A rank is worth ⌊10 log₁₀(N/rank)⌋ decibans; p is the exact chance of
          such a sum (`pvalue.rank_sum`). Fisher's sum against Gamma(m) is a weaker bound; it is among the facts.
Not open. A canary that the plan's time names and that is not opened, or was not asked, has the last rank: nothing was
          gained by choosing.
Access.   Likelihood needs weights or an API that gives log-probabilities of given text; text needs replies only.
Cost.     Likelihood: N answers a canary. Text: `samples` short replies a canary.
Limits.   A canary shows that the suspect met what was published, not how: anybody may have read and repeated it.
          Whoever filters training data for such questions is not found. The draw is the operator's (see controls).
Source.   Ranks of canaries: Carlini et al., "The Secret Sharer" (2019); exact ranks: Phipson and Smyth (2010).
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import CanariesConfig
from spiritsafe.audit._types import Access, Class, Hypothesis, Item, Outcome, Record, Suspect
from spiritsafe.audit.tests._answers import answers, as_json, by_likelihood, by_text, kept
from spiritsafe.audit.tests._bounds import bytes_of
from spiritsafe.audit.tests._committed import Window, read_committed
from spiritsafe.audit.tests._opened_canaries import OpenedCanary, read_canaries
from spiritsafe.errors import BadInput
from spiritsafe.pvalue import bonferroni, gamma, rank_sum
from spiritsafe.records import Sampling

__all__ = ["Canaries"]

_MOST = 200


class Canaries:
    kind: ClassVar[str] = "canaries"
    most: ClassVar[Class] = "proof"

    def __init__(self, config: CanariesConfig, evidence: Evidence) -> None:
        self._config, self._evidence = config, evidence
        ledger = None if config.ledger is None else read_committed(evidence.input(config.ledger))
        window = Window.of(config.since, config.until)
        self._read = read_canaries(evidence.input(config.canaries), ledger, window)
        if (count := len(self._read.canaries) + len(self._read.sealed or ())) > _MOST:
            raise BadInput(f"{config.canaries}: {count} canaries at once; name at most {_MOST}, by since and until")

    @property
    def name(self) -> str:
        return self._config.name or self.kind

    @property
    def access(self) -> Access:
        return "logprobs" if self._config.by == "likelihood" else "text"

    @property
    def null(self) -> str:
        way = "finds the likelier" if self._config.by == "likelihood" else "repeats the more closely"
        return (
            "Of several answers to each invented question one was drawn by chance and published. The suspect does not "
            f"depend on these draws: which answers it {way} has nothing to do with which were published."
        )

    def items(self) -> Sequence[Item]:
        return [self._item(canary) for canary in self._read.canaries.values()]

    def _item(self, canary: OpenedCanary) -> Item:
        prompt, config = bytes_of(canary.prompt), self._config
        if config.by == "text":
            return Item(canary.id, {"id": canary.id}, prompt * config.samples, config.max_tokens * config.samples)
        texts = sum(len(variant.encode()) for variant in canary.variants)
        return Item(canary.id, {"id": canary.id}, prompt * len(canary.variants) + texts, len(canary.variants))

    async def ask(self, suspect: Suspect, items: Sequence[Item]) -> list[Mapping[str, Any]]:
        config, canaries = self._config, [self._read.canaries[item.id] for item in items]
        prompts = [canary.prompt for canary in canaries]
        if config.by == "likelihood":
            found = await suspect.logprob(prompts, [canary.variants for canary in canaries])
            return [{"logprobs": [as_json(one) for one in some]} for some in found]
        sampling = Sampling(max_tokens=config.max_tokens, temperature=1.0)
        replies = await asyncio.gather(*(suspect.complete(prompt, sampling, config.samples) for prompt in prompts))
        return [{"replies": kept(some)} for some in replies]

    def judge(self, records: Sequence[Record]) -> Outcome:
        canaries, family = self._read.canaries, self._evidence.family
        got = answers(records, self.name, canaries)
        ranks: dict[str, tuple[int, int]] = {}
        for canary_id, answer in got.items():
            if answer is not None:
                ranks[canary_id] = self._rank(canaries[canary_id], answer), len(canaries[canary_id].variants)
        unasked = [len(canary.variants) for canary in canaries.values() if canary.id not in got]
        sealed = self._read.sealed or ()
        counted = [ranks[canary_id] for canary_id in canaries if canary_id in ranks]
        lost = [(size, size) for size in (*unasked, *sealed)]
        log10_p = rank_sum(*_columns([*counted, *lost]))
        failed = sum(answer is None for answer in got.values())
        facts = {
            "ranks": [[canary_id, *ranks[canary_id]] for canary_id in canaries if canary_id in ranks],
            "failed": failed,
            "unasked": len(unasked),
            "not_opened": None if self._read.sealed is None else len(sealed),
            "log10_p_fisher": _fisher([*counted, *lost]),
        }
        first = sum(rank == 1 for rank, _ in counted)
        middle = sorted(rank / size for rank, size in counted)[len(counted) // 2] if counted else 1.0
        return Outcome(
            test=self.name,
            kind=self.kind,
            most="lead" if self._read.sealed is None else self.most,
            log10_p=bonferroni(log10_p, family),
            n_scored=len(counted),
            family=family,
            hypotheses=(Hypothesis(self.name, log10_p, len(counted), float(first), facts=facts),),
            effect={
                "name": "median of rank / number of answers",
                "value": middle,
                "under_null": 0.5,
                "first": first,
                "canaries": len(counted),
            },
            notes=self._notes(failed, len(unasked)),
        )

    def redrawn(self, random: np.random.Generator) -> Canaries:
        """The same test had other variants been drawn: a trial of calibration, on answers that knew no draw."""
        canaries = {
            name: replace(one, published=int(random.integers(len(one.variants))))
            for name, one in self._read.canaries.items()
        }
        test = copy.copy(self)
        test._read = replace(self._read, canaries=canaries)
        return test

    def _rank(self, canary: OpenedCanary, answer: Mapping[str, Any]) -> int:
        where = f"transcript of {self.name}, {canary.id[:80]}"
        if self._config.by == "likelihood":
            scores = by_likelihood(where, answer.get("logprobs"), len(canary.variants))
        else:
            scores = by_text(where, answer.get("replies"), canary.variants)
        return sum(score >= scores[canary.published] for score in scores)

    def _notes(self, failed: int, unasked: int) -> tuple[str, ...]:
        sealed, notes = self._read.sealed, []
        if sealed is None:
            notes.append("No ledger was given: nothing shows that the draws were committed to before publication.")
        if sealed:
            notes.append(f"{len(sealed)} canaries of the time that the plan names are not opened; they count as lost.")
        if self._read.others:
            notes.append(f"{self._read.others} opened canaries are of another time; they are not looked at.")
        if failed:
            notes.append(f"{failed} canaries brought no answer; they are left out.")
        if unasked:
            notes.append(f"{unasked} canaries were not asked; they count as lost.")
        return tuple(notes)


def _columns(ranks: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [rank for rank, _ in ranks], [size for _, size in ranks]


def _fisher(ranks: Sequence[tuple[int, int]]) -> float:
    """For comparison: each rank/N is super-uniform, so −ln of it is at most an exponential."""
    return gamma(len(ranks), sum(math.log(size / rank) for rank, size in ranks))
