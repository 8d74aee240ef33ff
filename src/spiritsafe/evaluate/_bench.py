"""The same held-out answers, the same teacher, one model after another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spiritsafe.evaluate._heldout import Yardstick
from spiritsafe.evaluate._score import Pass, Scores, run_pass, score

__all__ = ["Bench"]


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Scores models on a yardstick. teacher: its pass where whole distributions are compared, else None.

    vocab: the real vocabulary; a padded head is cut to it.  batch_tokens: of one forward pass, padding included.
    """

    measure: Yardstick
    teacher: Pass | None
    vocab: int
    batch_tokens: int

    def scores(self, model: Any) -> Scores:
        """What `model`, which shares the student's tokenizer, does on every exchange."""
        passed = run_pass(model, self.measure.student, self.vocab, self.batch_tokens)
        return score(passed, self.measure.student, self.measure.keep, self.teacher)

    def up_to(self, tokens: int) -> tuple[Bench, list[int]]:
        """A bench of the first exchanges that hold `tokens` completion tokens together, and which they are."""
        lengths = np.array([len(e.completion_ids) for e in self.measure.student])
        rows = list(range(min(len(lengths), int(np.searchsorted(np.cumsum(lengths), tokens)) + 1)))
        cut, m = len(rows), self.measure
        teacher = self.teacher
        if teacher is not None:
            teacher = Pass(teacher.hidden[: int(lengths[:cut].sum())], teacher.head)
        part = replace(m, exchanges=m.exchanges[:cut], student=m.student[:cut], keep=m.keep[:cut], units=m.units[:cut])
        return replace(self, measure=part, teacher=teacher), rows

    @classmethod
    def open(cls, measure: Yardstick, teacher: Any, vocab: int, batch_tokens: int) -> tuple[Bench, Scores | None]:
        """A bench, and the teacher's own scores on it where its weights (a `Weights`) are here."""
        if teacher is None or measure.teacher is None:
            return cls(measure, None, vocab, batch_tokens), None
        passed = run_pass(teacher.model, measure.teacher, teacher.vocab_size, batch_tokens)
        if measure.kl_kind == "exact":
            return cls(measure, passed, vocab, batch_tokens), score(passed, measure.teacher, measure.keep)
        keep = [np.ones(len(e.completion_ids), bool) for e in measure.teacher]
        return cls(measure, None, vocab, batch_tokens), score(passed, measure.teacher, keep)
