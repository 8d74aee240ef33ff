from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from spiritsafe.curate._step import Check, Context, Row, Step
from spiritsafe.tasks import Contamination, HeldOut, read_held_out


class Decontaminate(Step):
    """Drop training rows that overlap what the student will be tested on, in prompt or completion.

    against: `evaluate` for this run's held-out rows, else a JSONL or Parquet file of benchmark texts (`columns` names
    those with questions). ngram, threshold: see `tasks.Contamination`. ignore_common: runs of words that go with more
    than this many different training prompts are boilerplate; 0 for no such exception.
    """

    name: ClassVar[str] = "decontaminate"
    against: str = "evaluate"
    columns: tuple[str, ...] = ()
    ngram: int = Field(default=13, ge=5, le=100)
    threshold: float | None = Field(default=0.8, gt=0.0, le=1.0)
    ignore_common: int = Field(default=10, ge=0)

    def start(self, context: Context) -> Check:
        if self.against == "evaluate":
            held_out = _held_out_rows(context)
        else:
            held_out = read_held_out(Path(self.against).expanduser(), self.columns)
        index = Contamination(held_out, ngram=self.ngram, threshold=self.threshold)
        if not len(index):
            context.say(f"decontaminate: nothing is held out in {self.against}, so nothing to compare with")
        elif self.ignore_common:
            training = ((row.question, row.completion) for row in context.rows() if row.split == "train")
            index.ignore_common(training, more_than=self.ignore_common)

        def check(row: Row) -> str | None:
            if found := index.find(row.question, is_question=True):
                return f"prompt {found}"
            found = index.find(row.completion, is_question=False)
            return f"completion {found}" if found else None

        return check


def _held_out_rows(context: Context) -> Iterator[HeldOut]:
    for row in context.rows():
        if row.split == "holdout":
            yield HeldOut(row.id, row.question)
            yield HeldOut(row.id, row.completion, is_question=False)
