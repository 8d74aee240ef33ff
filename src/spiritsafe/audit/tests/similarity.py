"""Similarity panel: does the suspect resemble the teacher more than every control does? A lead, never more.

Null hypothesis: the suspect is one more draw from the population its controls came from: had suspect and controls been
  shuffled, nobody could tell which is which by how they resemble the teacher.
Access: text. Suspect and controls answer the same prompts, greedily and with the same `max_tokens`.
Cost: one reply a prompt; comparing takes 0.13 s for each model and hundred prompts of 500 characters, on one core.
Exact: a conformal rank. Any score that treats suspect and controls alike, here the sum of ranks in the panel, gives
  p = (1 + controls that do as well) / (1 + K), ties against the suspect, and never below 1/(K+1): what is scarce is
  models, and no number of prompts makes up for it.
With `base`: what is ranked is how much nearer to the teacher a model is than its own base, which every control then
  needs too (difference in differences).
Cannot show: that the suspect was trained on the teacher. The null fails for many innocent reasons: a common ancestor,
  data bought from one vendor, controls of another kind than the suspect (other sizes, languages or years), web pages
  full of the teacher's words. Controls chosen after a look at the replies are worth nothing.
Source: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005, ch. 2; on control models, Nikolic,
  Baluta, Saxena, "Model Provenance Testing", arXiv 2502.00706.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from spiritsafe import pvalue
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import SimilarityConfig
from spiritsafe.audit._types import Access, Class, Hypothesis, Item, Outcome, Record, Suspect
from spiritsafe.audit.tests._panel import MEASURES, Looked, Seen, marks, ranks
from spiritsafe.audit.tests._replies import answered, complete_each, item_of, read_replies
from spiritsafe.errors import BadInput
from spiritsafe.records import Prompt, Sampling

__all__ = ["Similarity"]

F64 = NDArray[np.float64]

_CLAIM = "nearer to the teacher than the controls"


class Similarity:
    """See the banner."""

    kind: ClassVar[str] = "similarity"
    most: ClassVar[Class] = "lead"
    access: Access = "text"
    null = "In how it resembles the teacher, the suspect is one more draw from the population of the control models."

    def __init__(self, config: SimilarityConfig, evidence: Evidence) -> None:
        self._config, self.name = config, config.name or config.kind
        self._teacher = {p: texts[0] for p, texts in read_replies(evidence.input(config.reference)).items()}
        self._sampling = Sampling(max_tokens=config.max_tokens, temperature=0.0)
        if (config.base is None and config.control_bases) or (
            config.base is not None and set(config.control_bases) != set(config.controls)
        ):
            raise BadInput(
                f"{self.name}: the difference against a base needs base and, for every control, an entry of the same"
                " name in control_bases; give all of them or none"
            )
        files = [*config.controls.values(), *config.control_bases.values(), *([config.base] if config.base else [])]
        self._said = {file: self._replies(file, read_replies(evidence.input(file))) for file in files}

    def _replies(self, file: str, given: Mapping[Prompt, Sequence[str]]) -> list[str]:
        """The first reply to each of the teacher's prompts, in their order."""
        if missing := [prompt for prompt in self._teacher if prompt not in given]:
            raise BadInput(f"{file}: no reply to {len(missing)} of the {len(self._teacher)} prompts of the reference")
        return [given[prompt][0] for prompt in self._teacher]

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        return tuple(item_of(prompt.id, prompt, self._sampling) for prompt in self._teacher)

    @cached_property
    def _seen(self) -> list[Seen]:
        return [Seen(text) for text in self._teacher.values()]

    @cached_property
    def _looked(self) -> dict[str, Looked]:
        return {file: Looked.at(texts, self._seen) for file, texts in self._said.items()}

    def items(self) -> Sequence[Item]:
        return self._items

    async def ask(self, suspect: Suspect, items: Sequence[Item]) -> list[Mapping[str, Any]]:
        return await complete_each(suspect, items, self._sampling)

    def judge(self, records: Sequence[Record]) -> Outcome:
        replies = answered(records, self._items, self.name)
        places = [i for i, item in enumerate(self._items) if item.id in replies]
        if not places:
            return self._outcome(Hypothesis(_CLAIM, 0.0, 0, 0.0), 0)
        suspect = Looked.at([replies.get(item.id, "") for item in self._items], self._seen)
        values = self._values(suspect, places)
        scores = ranks(values)
        exceeding = sum(score >= scores[0] for score in scores[1:])
        controls = values[1:]
        hypothesis = Hypothesis(
            name=_CLAIM,
            log10_p=float(np.log10(pvalue.rank(exceeding, len(controls)))),
            n_scored=len(places),
            statistic=float(scores[0]),
            rank=(exceeding, len(controls)),
            facts={
                measure: {
                    "suspect": float(values[0, m]),
                    "controls": float(controls[:, m].mean()),
                    "highest_control": float(controls[:, m].max()),
                }
                for m, measure in enumerate(MEASURES)
            },
        )
        return self._outcome(hypothesis, len(places))

    def _values(self, suspect: Looked, places: Sequence[int]) -> F64:
        """(1 + K, M): the panel of the suspect, then of the controls; of each less that of its base, if given."""
        config = self._config
        teacher = np.stack([marks(seen) for seen in self._seen])
        names = sorted(config.controls)
        models = [suspect, *(self._looked[config.controls[name]] for name in names)]
        values = np.stack([model.panel(places, teacher) for model in models])
        if config.base is None:
            return values
        bases = [self._looked[config.base], *(self._looked[config.control_bases[name]] for name in names)]
        return np.asarray(values - np.stack([base.panel(places, teacher) for base in bases]))

    def _outcome(self, hypothesis: Hypothesis, answers: int) -> Outcome:
        count = len(self._config.controls)
        notes = [f"With {count} controls no p-value can be below 1/{count + 1}, however alike the replies are."]
        if missing := len(self._items) - answers:
            notes.append(f"{missing} of {len(self._items)} prompts brought no answer and are left out for all models.")
        twins = [name for name, file in self._config.controls.items() if self._said[file] == [*self._teacher.values()]]
        if twins:
            notes.append(f"Word for word the teacher's replies, and no controls therefore: {', '.join(sorted(twins))}.")
        characters = hypothesis.facts.get("characters", {})
        beyond = "beyond the base's" if self._config.base else "of replies"
        return Outcome(
            test=self.name,
            kind=self.kind,
            most=self.most,
            log10_p=hypothesis.log10_p,
            n_scored=answers,
            family=1,
            hypotheses=(hypothesis,),
            effect={
                "name": f"resemblance to the teacher {beyond} (chrF)",
                "value": characters.get("suspect"),
                "under_null": characters.get("controls"),
                "controls": count,
            },
            notes=tuple(notes),
        )
