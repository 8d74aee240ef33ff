"""What a test is, what a suspect is, and what is written down: the values everything in this package meets at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from spiritsafe.records import Prompt, Reply, Sampling, TeacherInfo

__all__ = ["NOT_ASKED", "Access", "Class", "Hypothesis", "Item", "Outcome", "Record", "Suspect", "Test"]

Access = Literal["weights", "logprobs", "text"]
"""What a test needs of a suspect, the most first: whoever has weights can also give the rest."""

Class = Literal["proof", "lead"]
"""The most a test can be, whatever its p-value: keyed evidence is proof, similarity is a lead."""

NOT_ASKED = "not asked: "
"""How the error of a `Record` begins where nothing was sent."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question to a suspect. `id` is unique in its test and says what is asked; `asked` is JSON.

    tokens_in, tokens_out: the most it can take, for the budget. Zero where nothing is charged.
    """

    id: str
    asked: Mapping[str, Any]
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the transcript: what was asked and what came back; if it failed, `got` is None and `error` says why.

    ts: Unix seconds.  attempt: 1 for the first `audit run`, one more after each start.
    """

    test: str
    item: str
    ts: float
    attempt: int
    asked: Mapping[str, Any]
    got: Mapping[str, Any] | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One null hypothesis tested: a key, a pair set, a canary set.

    log10_p: exact or an upper bound, before any correction.  n_scored: what was counted.
    rank: (decoys that do as well, decoys), for tests that have them.
    """

    name: str
    log10_p: float
    n_scored: int
    statistic: float
    rank: tuple[int, int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a test found, as `results.json` has it: a function of the frozen plan, what was opened, and the transcript.

    log10_p: of the best hypothesis, after Holm over `family` hypotheses: all that were committed to, not those opened.
    family: how many there were.  effect: the size of what was found, in words and numbers a reader can weigh, such as
        {"name": "released preferred", "value": 0.79, "ci95": [0.74, 0.84], "under_null": 0.5}.
    notes: what a reader must know: pairs missing, items that failed, keys opened before the release.
    """

    test: str
    kind: str
    most: Class
    log10_p: float
    n_scored: int
    family: int
    hypotheses: tuple[Hypothesis, ...]
    effect: Mapping[str, Any]
    notes: tuple[str, ...] = ()


class Suspect(Protocol):
    """The model under test. Safe to call concurrently from one event loop.

    access: the most it gives.  batch: how many items one call should carry.  concurrency: how many calls at once.
    Every call raises `TeacherError` where no usable answer came.
    """

    info: TeacherInfo
    access: Access
    batch: int
    concurrency: int

    async def read(self, ids_B: Sequence[Sequence[int]]) -> list[list[int]]:
        """Greedy predictions: [b][t] is the argmax of the next token after ids_B[b][: t + 1]. Weights only."""

    async def logprob(
        self, prompt_B: Sequence[Prompt], completion_B: Sequence[Sequence[str]]
    ) -> list[list[tuple[float, int]]]:
        """For each prompt, (sum of natural-log probabilities, tokens) of each of its completions, in this model's own
        tokenisation and chat template. Weights, or an API that gives them."""

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> tuple[Reply, ...]:
        """Replies as anybody would get them."""

    async def aclose(self) -> None: ...


class Test(Protocol):
    """A test of "this model does not depend on the teacher's coins" (or of a weaker null). One file each in `tests/`.

    Its file opens with a banner: null hypothesis, access, cost, what it cannot show, source. A test is made of the
    frozen plan's entry and what was opened for it; it keeps no state, so that a verifier can judge again.
    """

    kind: ClassVar[str]
    most: ClassVar[Class]

    @property
    def name(self) -> str:
        """As the plan calls it."""

    @property
    def access(self) -> Access:
        """The least a suspect has to give."""

    @property
    def null(self) -> str:
        """The null hypothesis in one sentence, as plan and report print it."""

    def items(self) -> Sequence[Item]:
        """Everything there is to ask, in the order to ask it. The same for the same plan and inputs."""

    async def ask(self, suspect: Suspect, items: Sequence[Item]) -> list[Mapping[str, Any]]:
        """Put some items to the suspect; what each brought, as JSON."""

    def judge(self, records: Sequence[Record]) -> Outcome:
        """What the answers say. Pure: the same records give the same outcome. Failed items (`got` None) count against
        nothing but are noted."""
