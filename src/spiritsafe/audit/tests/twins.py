"""Twin replies: does the suspect prefer what was released to what was sealed?

Null hypothesis. The suspect does not depend on which of the two replies to each request was released. Given the pairs,
the coins are then fair and independent of everything the suspect can say, so wins of the released replies are
Binomial(n, ½): no matter how the replies look, how alike they are, or what else the suspect was trained on, the same
teacher's other replies and even the sealed ones included. Only wins count: a magnitude cannot carry the test.

Score.    By likelihood: the reply's mean log-probability a token, given the request's messages as a chat.
          By text: how much the suspect's own replies to these messages resemble it (`_resemblance`), summed over the
          samples. Equal scores are ties and left out; whether there is a tie does not depend on the coin.
Not open. A pair that the plan names and that is not opened counts as lost: whoever chose what to open, it is a bound.
p.        P(Bin(n, ½) ≥ wins). Where the plan may stop early, or not every pair was asked, 1/E(n, wins) instead
          (`pvalue.coin_evalue`), which holds whenever one stops.
Access.   Likelihood needs weights or an API that gives log-probabilities of given text; text needs replies only.
Cost.     Likelihood: a pass over the prompt and both replies a pair. Text: `samples` replies a pair.
Limits.   The coin is the operator's: innocents on the same pairs must come out as coin flips (controls). No preference
          clears nobody: the suspect may have learned from other accounts' replies. Requests whose prompt is token ids
          or has images cannot be asked; a raw completion's prompt is asked as a user turn. By text, a suspect that
          remembers little needs many more pairs than by likelihood.
Source.   Paired sign test (Dixon and Mood, 1946) on coins as in randomised controlled trials; e-value: Ville (1939).
          In place of the held-out set of dataset inference (Maini et al., 2021) that nobody can prove was alike.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import TwinsConfig
from spiritsafe.audit._types import Access, Class, Hypothesis, Item, Outcome, Record, Suspect
from spiritsafe.audit.tests._answers import answers, as_json, by_likelihood, by_text, kept
from spiritsafe.audit.tests._bounds import bytes_of
from spiritsafe.audit.tests._committed import Window, read_committed
from spiritsafe.audit.tests._pairs import Pair, read_pairs
from spiritsafe.pvalue import binomial, bonferroni, clopper_pearson, coin_evalue, from_evalues
from spiritsafe.records import Sampling

__all__ = ["Twins"]


@dataclass(frozen=True, slots=True)
class _Count:
    """What became of the pairs that could be asked."""

    wins: int
    losses: int
    ties: int
    failed: int
    unasked: int


class Twins:
    kind: ClassVar[str] = "twins"
    most: ClassVar[Class] = "proof"

    def __init__(self, config: TwinsConfig, evidence: Evidence) -> None:
        self._config, self._evidence = config, evidence
        ledger = None if config.ledger is None else read_committed(evidence.input(config.ledger))
        window = Window.of(config.since, config.until)
        self._read = read_pairs(evidence.input(config.pairs), ledger, window, config.account, config.model)
        self._known: dict[tuple[str, ...], list[float]] = {}

    @property
    def name(self) -> str:
        return self._config.name or self.kind

    @property
    def access(self) -> Access:
        return "logprobs" if self._config.by == "likelihood" else "text"

    @property
    def null(self) -> str:
        way = "finds likelier" if self._config.by == "likelihood" else "repeats more closely"
        return (
            "For each request a coin decided which of two replies was released, after both were written. The suspect "
            f"does not depend on these coins: which of the two it {way} is as likely to be the sealed one."
        )

    def items(self) -> Sequence[Item]:
        return [self._item(pair) for pair in self._read.pairs.values()]

    def _item(self, pair: Pair) -> Item:
        prompt, config = bytes_of(pair.prompt), self._config
        asked = {"request_id": pair.request_id}
        if config.by == "text":
            return Item(pair.request_id, asked, prompt * config.samples, config.max_tokens * config.samples)
        return Item(pair.request_id, asked, 2 * prompt + sum(len(reply.encode()) for reply in pair.replies), 2)

    async def ask(self, suspect: Suspect, items: Sequence[Item]) -> list[Mapping[str, Any]]:
        config, pairs = self._config, [self._read.pairs[item.id] for item in items]
        prompts = [pair.prompt for pair in pairs]
        if config.by == "likelihood":
            found = await suspect.logprob(prompts, [pair.replies for pair in pairs])
            return [{"first": as_json(first), "second": as_json(second)} for first, second in found]
        sampling = Sampling(max_tokens=config.max_tokens, temperature=config.temperature)
        replies = await asyncio.gather(*(suspect.complete(prompt, sampling, config.samples) for prompt in prompts))
        return [{"replies": kept(some)} for some in replies]

    def judge(self, records: Sequence[Record]) -> Outcome:
        count, read, family = self._count(records), self._read, self._evidence.family
        judged = count.wins + count.losses
        n = judged + read.missing
        log10_e = coin_evalue(n, count.wins)
        by_evalue = self._evidence.sequential or count.unasked > 0
        log10_p = from_evalues(log10_e) if by_evalue else binomial(n, 0.5, count.wins)
        low, high = clopper_pearson(judged, count.wins)
        facts = {
            "wins": count.wins,
            "losses": count.losses,
            "ties": count.ties,
            "failed": count.failed,
            "unasked": count.unasked,
            "unusable": read.unusable,
            "named": read.named,
            "opened": read.opened,
            "not_opened": read.missing,
            "p_by": "e-value" if by_evalue else "binomial",
            "log10_e": log10_e,
        }
        return Outcome(
            test=self.name,
            kind=self.kind,
            most="lead" if read.named is None else self.most,
            log10_p=bonferroni(log10_p, family),
            n_scored=judged,
            family=family,
            hypotheses=(Hypothesis(self.name, log10_p, judged, float(count.wins), facts=facts),),
            effect={
                "name": "released preferred",
                "value": count.wins / judged if judged else 0.5,
                "ci95": [low, high],
                "under_null": 0.5,
                "pairs": judged,
            },
            notes=self._notes(count),
        )

    def evalue(self, records: Sequence[Record]) -> float:
        """log10 of the evidence so far: a run may stop once it reaches −log10(alpha / family), and at no other sign."""
        count = self._count(records)
        return coin_evalue(count.wins + count.losses + self._read.missing, count.wins)

    def redrawn(self, random: np.random.Generator) -> Twins:
        """The same test had other coins been tossed: a trial of calibration, on answers that knew none of them."""
        pairs = {name: replace(pair, released=int(random.integers(2))) for name, pair in self._read.pairs.items()}
        test = copy.copy(self)
        test._read = replace(self._read, pairs=pairs)
        return test

    def _count(self, records: Sequence[Record]) -> _Count:
        got = answers(records, self.name, self._read.pairs)
        wins = losses = ties = failed = 0
        for request_id, pair in self._read.pairs.items():
            if (answer := got.get(request_id)) is None:
                failed += request_id in got
                continue
            where = f"transcript of {self.name}, {request_id[:80]}"
            if self._config.by == "likelihood":
                scores = by_likelihood(where, [answer.get("first"), answer.get("second")], 2)
            else:
                scores = by_text(where, answer.get("replies"), pair.replies, self._known)
            released, sealed = scores[pair.released], scores[1 - pair.released]
            wins, losses, ties = wins + (released > sealed), losses + (released < sealed), ties + (released == sealed)
        return _Count(wins, losses, ties, failed, len(self._read.pairs) - len(got))

    def _notes(self, count: _Count) -> tuple[str, ...]:
        read, notes = self._read, []
        if read.named is None:
            notes.append("No ledger was given: nothing shows that the coins were committed to before release.")
        if read.missing:
            notes.append(
                f"{read.missing} of {read.named} pairs that the plan names are not opened; they count as lost."
            )
        if read.unusable:
            notes.append(f"{read.unusable} pairs have no two different texts to compare; they are left out.")
        if read.others:
            notes.append(f"{read.others} opened pairs are not named by the plan; they are not looked at.")
        if count.ties:
            notes.append(f"{count.ties} pairs are ties; they are left out.")
        if count.failed:
            notes.append(f"{count.failed} pairs brought no answer; they are left out.")
        if count.unasked:
            notes.append(f"{count.unasked} pairs were not asked; p is by the e-value, which holds whenever one stops.")
        return tuple(notes)
