"""What a curation step is: parameters, and a check that says of one training row why it should go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from spiritsafe.config import StrictModel
from spiritsafe.records import Message

__all__ = ["Check", "Context", "Row", "Step"]


@dataclass(frozen=True, slots=True)
class Row:
    """What a step sees of an exchange: texts and counts, no log-probabilities. `tokens` is the completion's length."""

    id: str
    messages: tuple[Message, ...]
    completion: str
    finish_reason: str
    tokens: int
    split: str

    @property
    def conversation(self) -> str:
        """The prompt whole, roles included."""
        return "\n".join(f"{m.role}: {m.content}" for m in self.messages)

    @property
    def question(self) -> str:
        """The prompt's text without roles and system messages, which rows share."""
        return "\n".join(m.content for m in self.messages if m.role != "system")


# Why a row should go, in words for people; None to keep it.
Check = Callable[[Row], str | None]


@dataclass(frozen=True, slots=True)
class Context:
    """What a step may look at before it starts: `rows` streams every row, of both splits, as often as called."""

    rows: Callable[[], Iterator[Row]]
    say: Callable[[str], None]


class Step(StrictModel):
    """A step's parameters are its fields, checked strictly. `name` is how recipes call it.

    `start` is called once per run of the step; the check it returns sees the training rows that earlier steps kept, in
    file order, one at a time, and may keep state. It must not depend on anything but those rows and the parameters.
    """

    name: ClassVar[str]

    @abstractmethod
    def start(self, context: Context) -> Check:
        """Begin a pass over the rows; the check returned says why a row should go."""
