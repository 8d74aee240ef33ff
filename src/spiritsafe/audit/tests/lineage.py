"""Weight lineage: do the suspect's weights come from the teacher's, beyond what the declared base explains?

Null hypothesis: the order in which the teacher's hidden units, and the coordinates of its residual stream, came out of
  its random initialisation has nothing to do with the suspect's weights.
Access: weights of suspect and teacher; of the base and of siblings, where there are any. No prompt is asked.
Cost: a product of two layers' matrices for each layer: 5 s for 135M parameters on one core; two layers in memory.
Exact: units are initialised alike and independently, and optimisers treat them alike, so all orders of a layer's units
  are equally likely, independently for each layer; the same holds for coordinates. Units found in their place in a
  model that never saw the teacher's weights are then agreeing places of random orders: `pvalue.matches`, a proven bound
  that pays for choosing, for each layer of the teacher, the layer of the suspect most like it. This assumes something
  about the teacher's training, which its owner can vouch for, not about the suspect's. The two hypotheses go through
  Holm.
With a base that shares the teacher's weights, the above says nothing: whoever starts from that base shares them too.
  It is then set aside, and what is left is the teacher's own change, teacher − base: the share of it in the suspect is
  1 for a copy and 0 for the base. Independent fine-tunes of one base change alike to a degree nobody can calculate, so
  there is no p-value for it but the rank among `siblings`, other models made from that base: never below 1/(K+1).
Cannot show: who copied from whom (suspect and teacher are exchangeable here, and may both descend from a third model
  that nobody declared); that outputs were copied. A suspect whose units and coordinates were reordered, or whose basis
  was rotated, escapes: no finding is no acquittal. Equal seeds in equal code give equal orders without any copying.
  Weights quantised in blocks along a row bend the symmetry of coordinates, not that of units. A lead, at most.
Source: Zhu, Ahmed, Kuditipudi, Liang, "Independence Tests for Language Models", arXiv 2502.12292: the symmetry. They
  compare orders by Spearman's coefficient and an approximate p-value; agreeing places have a proven one, and show a
  part that was kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from spiritsafe import pvalue
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import LineageConfig
from spiritsafe.audit._types import Access, Class, Hypothesis, Item, Outcome, Record, Suspect
from spiritsafe.audit.tests._counted import Counted, read_counted
from spiritsafe.audit.tests._tensors import Decoder, decoder_of, open_decoder
from spiritsafe.audit.tests._units import coordinates, own_change, units
from spiritsafe.errors import BadInput
from spiritsafe.teachers import TeacherError, load_weights

__all__ = ["Lineage"]

_ITEM = "weights"
_RELATED = -2.0
"""log10 p below which a base counts as sharing the teacher's weights: set aside rather than accuse."""


class Lineage:
    """See the banner."""

    kind: ClassVar[str] = "lineage"
    most: ClassVar[Class] = "lead"
    access: Access = "weights"
    null = (
        "The suspect's weights do not come from the teacher's beyond what the declared base explains: the order that"
        " chance gave the teacher's hidden units and coordinates has nothing to do with them."
    )

    def __init__(self, config: LineageConfig, evidence: Evidence) -> None:
        if config.siblings and config.base is None:
            raise BadInput("lineage.siblings: are made from the base; name it in lineage.base")
        self._config, self._evidence = config, evidence
        self.name = config.name or self.kind

    def items(self) -> Sequence[Item]:
        return [Item(_ITEM, {"weights": "teacher"})]

    async def ask(self, suspect: Suspect, items: Sequence[Item]) -> list[Mapping[str, Any]]:
        weights = getattr(suspect, "weights", None)
        if weights is None:
            raise TeacherError("bad_request", "lineage compares weights, and this suspect gives only answers")
        return [await asyncio.to_thread(self._count, weights) for _ in items]

    def judge(self, records: Sequence[Record]) -> Outcome:
        counted = read_counted(records, self.name, tuple(self._config.siblings), self._config.base is not None)
        return _Judged(self._config, self.name, self.kind, self.most, counted).outcome()

    def _count(self, weights: Any) -> dict[str, Any]:
        suspect = decoder_of(weights.model, weights.source)
        with self._open(self._config.teacher) as teacher:
            if self._config.base is None:
                return {"suspect": _compared(teacher, suspect, None)}
            with self._open(self._config.base) as base:
                got = {"suspect": _compared(teacher, suspect, base), "base": _compared(teacher, base, None)}
                siblings = {}
                for name, source in self._config.siblings.items():
                    with self._open(source) as sibling:
                        siblings[name] = _compared(teacher, sibling, base)
                return {**got, "siblings": siblings}

    @contextmanager
    def _open(self, name: str) -> Iterator[Decoder]:
        path = Path(self._evidence.inputs.get(name, name))
        if path.exists():
            with open_decoder(path) as decoder:
                yield decoder
        else:
            yield decoder_of(load_weights(str(path)).model, str(path))


def _compared(teacher: Decoder, other: Decoder, base: Decoder | None) -> dict[str, Any]:
    """What the transcript has of one model. `change` only of what is made from the base itself."""
    counts = {"units": units(teacher, other), "coordinates": coordinates(teacher, other)}
    got: dict[str, Any] = {name: None if count is None else asdict(count) for name, count in counts.items()}
    if base is not None:
        kin = [
            count is not None and pvalue.matches(count.found, count.orders, count.choices) <= _RELATED
            for count in (units(base, other), coordinates(base, other))
        ]
        got["change"] = own_change(base, teacher, other) if any(kin) else None
    return got


class _Judged:
    """The decision, from what was counted."""

    def __init__(self, config: LineageConfig, name: str, kind: str, most: Class, counted: Counted | None) -> None:
        self._config, self._name, self._kind, self._most, self._counted = config, name, kind, most, counted

    def outcome(self) -> Outcome:
        if self._counted is None:
            return self._make((), ["The weights could not be compared."], {"name": "hidden units in their place"})
        suspect, base, siblings = self._counted.suspect, self._counted.base, self._counted.siblings
        found = [self._places(name, count) for name, count in suspect.counts.items()]
        notes = [] if base else ["No base was declared: weights shared through a common ancestor look the same."]
        if not any(count for count in suspect.counts.values()):
            notes.append(
                "Suspect and teacher differ in width or architecture: nothing in their weights can be compared."
            )
        effect = self._effect()
        if base and (related := [n for n, count in base.counts.items() if count and count.log10_p <= _RELATED]):
            notes.append(
                f"The declared base shares its {' and '.join(related)} with the teacher, which explains those of the"
                " suspect: they count for nothing."
            )
            found = [self._change(suspect.share, {n: s.share for n, s in siblings.items()}, notes)]
        return self._make(tuple(found), notes, effect)

    def _places(self, name: str, count: Any) -> Hypothesis:
        label = {"units": "hidden units in their place", "coordinates": "coordinates in their place"}[name]
        if count is None:
            return Hypothesis(label, 0.0, 0, 0.0)
        facts = {"of": count.of, "orders": count.orders, "choices": count.choices}
        return Hypothesis(label, count.log10_p, count.of, float(count.found), facts=facts)

    def _change(self, share: float | None, others: Mapping[str, float | None], notes: list[str]) -> Hypothesis:
        """Rank of the suspect's share of the teacher's own change among siblings that, like it, come from the base."""
        label = "the teacher's own change in the suspect"
        known = {name: value for name, value in others.items() if value is not None}
        if strange := sorted(set(others) - set(known)):
            notes.append(f"Not made from the base, or of another shape, and left out: {', '.join(strange)}.")
        if share is None:
            notes.append(
                "The suspect does not come from the declared base, is of another shape, or the teacher changed nothing."
            )
            return Hypothesis(label, 0.0, 0, 0.0, facts={"siblings": known})
        if not known:
            notes.append("Without siblings nobody can say how much of the teacher's change others have by chance.")
            return Hypothesis(label, 0.0, 0, share, facts={"siblings": known})
        exceeding = sum(value >= share for value in known.values())
        log10_p = float(np.log10(pvalue.rank(exceeding, len(known))))
        return Hypothesis(label, log10_p, len(known), share, (exceeding, len(known)), {"siblings": known})

    def _effect(self) -> dict[str, Any]:
        assert self._counted is not None
        suspect, base = self._counted.suspect, self._counted.base
        count = suspect.counts["units"]
        effect: dict[str, Any] = {
            "name": "hidden units of the teacher in their place in the suspect, share",
            "value": count.found / count.of if count else None,
            "under_null": count.orders / count.of if count else None,
        }
        if base:
            of_base = base.counts["units"]
            effect["base"] = of_base.found / of_base.of if of_base else None
            effect["own_change"] = suspect.share
        return effect

    def _make(self, found: tuple[Hypothesis, ...], notes: list[str], effect: Mapping[str, Any]) -> Outcome:
        corrected = pvalue.holm([h.log10_p for h in found]) if found else np.zeros(1)
        return Outcome(
            test=self._name,
            kind=self._kind,
            most=self._most,
            log10_p=float(corrected.min()),
            n_scored=max((h.n_scored for h in found), default=0),
            family=max(len(found), 1),
            hypotheses=found,
            effect=effect,
            notes=tuple(notes),
        )
