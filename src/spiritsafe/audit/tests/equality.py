"""Model equality, for custody: is today's endpoint the model that was sampled before?

Null hypothesis: for every prompt, the replies in the reference and today's are draws of one distribution.
Access: text. Both sides must have been sampled alike: same prompts, system message, temperature, length limit.
Cost: prompts × `samples` replies; the statistics take seconds.
Exact: under the null all replies to a prompt are exchangeable, so a permutation p-value within prompts is, too:
  (1 + permutations that do as well) / (1 + permutations). It is never 0 and never below 1/(1 + permutations).
Cannot show: that two endpoints are the same (not rejecting is no proof of that); what changed, or who changed it: a new
  version, a quantisation, a filter, a system message and another `max_tokens` all look alike. It is no evidence of
  copying. Replies from a cache are no draws, and an endpoint that caches is called different.
Source: Gao, Liang, Guestrin, "Model Equality Testing", arXiv 2410.20247, sec. 3: maximum mean discrepancy with the
  Hamming kernel on the first characters, prompts as strata. Theirs divides by the number of permutations and so can
  report 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from spiritsafe import pvalue
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import EqualityConfig
from spiritsafe.audit._types import Access, Class, Hypothesis, Item, Outcome, Record, Suspect
from spiritsafe.audit.tests._replies import answered, complete_each, item_of, read_replies
from spiritsafe.errors import BadInput
from spiritsafe.records import Prompt, Sampling

__all__ = ["Equality", "discrepancies", "distances"]

F64 = NDArray[np.float64]

CHARACTERS = 1000
"""L: how far into a reply the kernel looks."""
_TIES = 1e-9  # relative: sums in another order must not decide


class Equality:
    """See the banner."""

    kind: ClassVar[str] = "equality"
    most: ClassVar[Class] = "lead"
    access: Access = "text"
    null = "For every prompt, the replies in the reference and those of the model now are draws of one distribution."

    def __init__(self, config: EqualityConfig, evidence: Evidence) -> None:
        self._config, self._evidence = config, evidence
        self.name = config.name or self.kind
        self._reference = read_replies(evidence.input(config.reference))
        self._sampling = Sampling(max_tokens=config.max_tokens, temperature=config.temperature)
        if max(map(len, self._reference.values())) + config.samples > 2_000:
            raise BadInput(f"{config.reference}: more than 2,000 replies to one prompt; give more prompts instead")

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        return tuple(
            item_of(f"{prompt.id}-{sample}", prompt, self._sampling, sample=sample)
            for prompt in self._reference
            for sample in range(self._config.samples)
        )

    def items(self) -> Sequence[Item]:
        return self._items

    async def ask(self, suspect: Suspect, items: Sequence[Item]) -> list[Mapping[str, Any]]:
        return await complete_each(suspect, items, self._sampling)

    def judge(self, records: Sequence[Record]) -> Outcome:
        replies = answered(records, self._items, self.name)
        now: dict[Prompt, list[str]] = {prompt: [] for prompt in self._reference}
        for (prompt, _), item in zip(self._each(), self._items, strict=True):
            if item.id in replies:
                now[prompt].append(replies[item.id])
        compared = {prompt: texts for prompt, texts in now.items() if texts}
        statistic = np.zeros(1 + self._config.permutations)
        across = within = pairs_across = pairs_within = 0
        for prompt, texts in compared.items():
            before = self._reference[prompt]
            apart = distances(before + texts)
            n = len(before)
            statistic += discrepancies(apart, n, self._config.permutations, self._seed(prompt))
            across += int(apart[:n, n:].sum())
            pairs_across += n * len(texts)
            within += int(apart[:n, :n].sum())
            pairs_within += n * (n - 1)
        observed = float(statistic[0])
        exceeding = int(np.count_nonzero(statistic[1:] >= observed - _TIES * max(1.0, abs(observed))))
        p = pvalue.rank(exceeding, self._config.permutations)
        log10_p = float(np.log10(p)) if compared else 0.0
        hypothesis = Hypothesis(
            name="another distribution than the reference",
            log10_p=log10_p,
            n_scored=len(replies),
            statistic=observed,
            rank=(exceeding, self._config.permutations),
            facts={"prompts": len(compared), "reference": sum(len(self._reference[p]) for p in compared)},
        )
        effect = {
            "name": f"characters that differ between a reply now and one of the reference (first {CHARACTERS})",
            "value": across / pairs_across if pairs_across else None,
            "under_null": within / pairs_within if pairs_within else None,
        }
        return Outcome(
            test=self.name,
            kind=self.kind,
            most=self.most,
            log10_p=log10_p,
            n_scored=len(replies),
            family=1,
            hypotheses=(hypothesis,),
            effect=effect,
            notes=self._notes(len(replies), compared),
        )

    def _each(self) -> Sequence[tuple[Prompt, int]]:
        return [(prompt, sample) for prompt in self._reference for sample in range(self._config.samples)]

    def _seed(self, prompt: Prompt) -> bytes:
        return b"spiritsafe equality/1\0" + self._evidence.decoy_seed + b"\0" + f"{self.name}\0{prompt.id}".encode()

    def _notes(self, answers: int, compared: Mapping[Prompt, Sequence[str]]) -> tuple[str, ...]:
        notes = ["A p-value that is not small does not show that the model is the same."]
        if missing := len(self._items) - answers:
            notes.append(f"{missing} of {len(self._items)} requests brought no answer and are left out.")
        copies = [p for p in compared if len(self._reference[p]) > 2 and len(set(self._reference[p])) == 1]
        if copies and self._config.temperature > 0:
            notes.append(
                f"The reference repeats itself word for word on {len(copies)} of {len(compared)} prompts: it may come"
                " from a cache, and is then no sample."
            )
        return tuple(notes)


def distances(texts: Sequence[str]) -> F64:
    """Hamming distances (N, N) of the first `CHARACTERS` characters; past its end a text differs from a longer one."""
    width = min(CHARACTERS, max(map(len, texts), default=0))
    codes = np.zeros((len(texts), width), np.uint32)
    for row, text in zip(codes, texts, strict=True):
        beginning = text[:width].encode("utf-32-le", "surrogatepass")
        row[: len(beginning) // 4] = np.frombuffer(beginning, np.uint32) + 1  # 0 is "no character"
    out = np.zeros((len(texts), len(texts)))
    for at in range(len(texts)):
        out[at] = np.count_nonzero(codes != codes[at], axis=1)
    return out


def discrepancies(apart_NN: F64, n: int, permutations: int, seed: bytes) -> F64:
    """n·m/(n+m) times the squared maximum mean discrepancy (V-statistic, kernel −distance) between the first n and the
    other m texts, then the same for each permutation: (1 + permutations,).

    A permutation takes as the first n those with the n smallest of N 64-bit numbers: SHAKE-256 of `seed` and the number
    of its block of a thousand permutations, read big-endian, row by row.
    """
    total = len(apart_NN)
    m = total - n
    out = np.empty(1 + permutations)
    labels = np.zeros((1, total))
    labels[0, n:] = 1.0
    out[0] = _statistic(apart_NN, labels, n, m)[0]
    for at in range(0, permutations, 1000):
        rows = min(1000, permutations - at)
        drawn = hashlib.shake_256(seed + (at // 1000).to_bytes(8, "big")).digest(8 * total * rows)
        numbers = np.frombuffer(drawn, ">u8").reshape(rows, total)
        order = np.argsort(numbers, axis=1, kind="stable")
        labels = np.ones((rows, total))
        np.put_along_axis(labels, order[:, :n], 0.0, axis=1)
        out[1 + at : 1 + at + rows] = _statistic(apart_NN, labels, n, m)
    return out


def _statistic(apart_NN: F64, now_BN: F64, n: int, m: int) -> F64:
    """Of each row of labels (1: now). Every sum is of whole numbers below 2^53, so exact in any order."""
    among_now = np.einsum("bn,bn->b", now_BN @ apart_NN, now_BN)
    with_now = now_BN @ apart_NN.sum(axis=1)
    across = with_now - among_now
    among_before = apart_NN.sum() - 2 * across - among_now
    return np.asarray((n * m / (n + m)) * (2 * across / (n * m) - among_before / (n * n) - among_now / (m * m)))
