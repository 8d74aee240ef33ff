"""The plan: what will be asked, which test decides, at which level; written before the first query."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from spiritsafe.config import StrictModel, parse_config
from spiritsafe.errors import BadInput
from spiritsafe.spend import Price
from spiritsafe.teachers import TeacherConfig

__all__ = [
    "AuditPlan",
    "BudgetConfig",
    "CanariesConfig",
    "EqualityConfig",
    "LineageConfig",
    "RadioactivityConfig",
    "SimilarityConfig",
    "StopConfig",
    "SubjectConfig",
    "TestConfig",
    "TwinsConfig",
]


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", text):
        raise ValueError("a name has small letters, digits and dashes, 64 at most")
    return text


_Name = Annotated[str, AfterValidator(_name)]  # names of files in a case are made of it


class SubjectConfig(StrictModel):
    """Who is asked. The address or path itself is given to `audit run`; what answers must be what the plan says.

    model: the name an API is asked for.  base: the base model it is said to come from: a path or hub id.
    revision: where known beforehand, (the beginning of) the SHA-256 of the weights.
    """

    name: str
    access: Literal["weights", "logprobs", "text"]
    model: str | None = None
    api_key_env: str | None = None
    base: str | None = None
    revision: str | None = None


class _Test(StrictModel):
    """name: how results call it; default its kind."""

    name: _Name | None = None


class RadioactivityConfig(_Test):
    """Does the suspect carry the teacher's mark?

    mode: `reading` feeds it marked text and scores what it would say next (weights); `completions` lets it write.
    supervised: the texts are what it is suspected of having been trained on, not fresh ones of the same teacher.
    texts: JSONL or Parquet with `prompt`/`messages` and `completion`, or what `evidence twins export` wrote: the
        replies that were released.  tokenizer: the teacher's.
    engine: an engine's own scheme instead of ours, with its `params` file (both scored with the key in the file).
    leaves: opened keys (LEAF.json): the epoch key and the coin key of each epoch.  commitment: what was published.
    marking: settings of the mark, as KEYS.json has them.
    per_account: opened keys of account slots (files of one or of many), tested one by one where the account layer was
        on.
    """

    kind: Literal["radioactivity"]
    mode: Literal["reading", "completions"] = "reading"
    supervised: bool = True
    texts: str
    tokenizer: str
    leaves: tuple[str, ...] = ()
    commitment: str | None = None
    marking: dict[str, object] | None = None
    engine: str | None = None
    params: str | None = None
    per_account: tuple[str, ...] = ()
    max_texts: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    decoys: int = Field(default=1000, ge=0, le=1_000_000)


class TwinsConfig(_Test):
    """Does the suspect prefer the replies that were released to their sealed twins?

    pairs: what `evidence twins export` wrote.  ledger: `ledger export --all` of the same guard, which commits to them.
    by: `likelihood` of both (weights or logprobs), or `text`: which of the two its own replies resemble.
    model, account, since, until: only these pairs: how the plan names them by what is in the ledger (times: a day, an
        ISO time, UTC unless it says otherwise, or Unix seconds). Pairs so named that are not opened count as lost.
    """

    kind: Literal["twins"]
    pairs: str
    ledger: str | None = None
    by: Literal["likelihood", "text"] = "likelihood"
    model: str | None = None
    account: str | None = None
    since: str | None = None
    until: str | None = None
    samples: int = Field(default=4, ge=1)
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, ge=0)


class CanariesConfig(_Test):
    """Does the suspect rank the published answer of a canary above its sealed ones?

    canaries: a JSON array or JSONL of `evidence canary show --secret --json`.
    ledger, since, until: as in twins: canaries committed to in that time and not opened count against the finding.
    """

    kind: Literal["canaries"]
    canaries: str
    ledger: str | None = None
    by: Literal["likelihood", "text"] = "likelihood"
    since: str | None = None
    until: str | None = None
    samples: int = Field(default=8, ge=1)
    max_tokens: int = Field(default=64, ge=1)


class LineageConfig(_Test):
    """Do the suspect's weights come from the teacher's weights, beyond what the declared base explains?

    teacher, base: weights: a folder of safetensors, a .safetensors or .gguf file.
    siblings: name → weights of a model that was made from `base` without the teacher: what innocence looks like.
    """

    kind: Literal["lineage"]
    teacher: str
    base: str | None = None
    siblings: dict[str, str] = Field(default_factory=dict)


class EqualityConfig(_Test):
    """Is today's endpoint the one that was sampled before? `reference`: JSONL of {"prompt", "completion"}."""

    kind: Literal["equality"]
    reference: str
    samples: int = Field(default=10, ge=1)
    max_tokens: int = Field(default=50, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    permutations: int = Field(default=9_999, ge=99)


class SimilarityConfig(_Test):
    """Does the suspect resemble the teacher more than every control does? A lead, never more.

    reference: JSONL of {"prompt", "completion"}, what the teacher said.
    controls: name → JSONL of the same form: the replies of an innocent model to the same prompts.
    base: replies of the suspect's base. With it, what counts is how much nearer to the teacher a model is than its own
        base, so each control needs its own base too, under the same name in `control_bases`.
    """

    kind: Literal["similarity"]
    reference: str
    controls: dict[str, str] = Field(min_length=1)
    base: str | None = None
    control_bases: dict[str, str] = Field(default_factory=dict)
    max_tokens: int = Field(default=128, ge=1)


TestConfig = Annotated[
    RadioactivityConfig | TwinsConfig | CanariesConfig | LineageConfig | EqualityConfig | SimilarityConfig,
    Field(discriminator="kind"),
]


class StopConfig(StrictModel):
    """all: ask everything.  e-value: stop as soon as the primary test's e-value reaches 1/alpha; twins only."""

    rule: Literal["all", "e-value"] = "all"
    batch: int = Field(default=16, ge=1)


class BudgetConfig(StrictModel):
    usd: float | None = Field(default=None, ge=0)
    requests: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    price: dict[str, float] | None = None

    @field_validator("price")
    @classmethod
    def _is_price(cls, price: dict[str, float] | None) -> dict[str, float] | None:
        try:
            if price is not None:
                parse_config(price, Price, where="")
        except BadInput as error:
            raise ValueError(str(error).removeprefix(": ")) from None
        return price


class AuditPlan(StrictModel):
    """PLAN.yaml. The first test is the primary one: it decides. The others are looked at in the order given, each only
    while those before it rejected (gate-keeping), so that together they keep `alpha`.

    statement: who asks, for whom, on what occasion; printed in the report as it is.
    decoy_seed: public; default the hash of the plan's inputs.
    signer: Ed25519 private key (PEM) that signs plan and case.  tsa: address of an RFC 3161 time-stamping authority.
    """

    name: _Name
    question: str
    statement: str = ""
    subject: SubjectConfig
    alpha: float = Field(default=1e-3, gt=0, lt=0.5)
    tests: tuple[TestConfig, ...] = Field(min_length=1)
    stop: StopConfig = StopConfig()
    budget: BudgetConfig = BudgetConfig()
    controls: dict[_Name, TeacherConfig] = Field(default_factory=dict)
    decoy_seed: str | None = Field(default=None, pattern=r"^[0-9a-f]{16,128}$")
    signer: str | None = None
    tsa: str | None = None

    @field_validator("question")
    @classmethod
    def _asks(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("write the question this audit is to answer")
        return text

    @model_validator(mode="after")
    def _fits(self) -> AuditPlan:
        names = [test.name or test.kind for test in self.tests]
        if len(set(names)) != len(names):
            raise ValueError("two tests of one kind: give each a name")
        if self.stop.rule == "e-value" and self.tests[0].kind != "twins":
            raise ValueError("stop.rule e-value: the primary test has to be twins")
        return self
