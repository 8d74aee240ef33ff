"""What accounts may do, as the config says it: limits, what of a reply may leave, tiers, the ladder's steps."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from spiritsafe.config import StrictModel

__all__ = [
    "STEPS",
    "Count",
    "LadderConfig",
    "LimitSet",
    "LimitsConfig",
    "OutputRules",
    "PriceStep",
    "Rule",
    "Share",
    "Step",
    "Tier",
    "Usd",
]

# bounds: what a limiter counts exactly in Redis's numbers, 2**53 nano-dollars or units x milliseconds
Count = Annotated[int, Field(ge=0, le=10**11)]
Usd = Annotated[Decimal, Field(ge=0, le=9 * 10**6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

Rule = Literal[
    "requests_per_min",
    "requests_per_day",
    "tokens_per_min",
    "input_tokens_per_min",
    "output_tokens_per_min",
    "tokens_per_day",
    "usd_per_day",
    "usd_per_month",
    "usd_lifetime",
    "concurrency",
]
Step = Literal["observe", "notify", "cluster_cap", "price_tier", "output_policy", "review", "suspend"]
STEPS: tuple[Step, ...] = ("observe", "notify", "cluster_cap", "price_tier", "output_policy", "review", "suspend")


class LimitSet(StrictModel):
    """Limits of one subject; what is not given is not limited. Tokens count prompt and completion together.

    usd_lifetime_per_day: what the lifetime allowance grows by with each day of the account's age.
    shadow: true, or the rules, that only record what they would have refused.
    """

    requests_per_min: Count | None = None
    requests_per_day: Count | None = None
    tokens_per_min: Count | None = None
    input_tokens_per_min: Count | None = None
    output_tokens_per_min: Count | None = None
    tokens_per_day: Count | None = None
    usd_per_day: Usd | None = None
    usd_per_month: Usd | None = None
    usd_lifetime: Usd | None = None
    usd_lifetime_per_day: Usd = Decimal(0)
    concurrency: Count | None = None
    shadow: bool | tuple[Rule, ...] = False


class OutputRules(StrictModel):
    """What of a reply may leave. None: as the tier says (in a ladder step) or no rule (in a tier).

    logprobs: most alternatives per token; 0 turns log-probabilities off.  logprob_decimals: round them.
    logit_bias_with_logprobs: allow both in one request (together they give away the projection layer,
        Carlini et al. 2024, §4).
    reasoning: "show" it, "withhold" it, or "summarise" it (withheld in streams).
    """

    logprobs: Annotated[int, Field(ge=0, le=128)] | None = None
    logprob_decimals: Annotated[int, Field(ge=0, le=8)] | None = None
    logit_bias: bool | None = None
    logit_bias_with_logprobs: bool | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning: Literal["show", "withhold", "summarise"] | None = None


class PriceStep(StrictModel):
    """From `above_usd` spent in the month on, the next request costs `times` the list price."""

    above_usd: Usd
    times: Annotated[Decimal, Field(ge=1, le=1000)]


class Tier(LimitSet, OutputRules):
    """One class of customers.

    schedule: how the price rises with what was spent this month.  models: those it may use; all unless given.
    watermark: mark replies with the account's key.  twin_share: the part of eligible requests answered twice.
    """

    logprobs: Annotated[int, Field(ge=0, le=128)] = 0
    logit_bias: bool = True
    logit_bias_with_logprobs: bool = False
    n: Annotated[int, Field(ge=1, le=128)] = 8
    max_tokens: Annotated[int, Field(ge=1)] = 4096
    reasoning: Literal["show", "withhold", "summarise"] = "show"
    watermark: bool = False
    twin_share: Share = 0.0
    models: tuple[str, ...] | None = None
    schedule: tuple[PriceStep, ...] = ()


class LimitsConfig(StrictModel):
    """when_state_is_down: what a limit does while its state (Redis) is away; one answer, or one per rule."""

    when_state_is_down: Literal["open", "closed"] | dict[Rule | Literal["default"], Literal["open", "closed"]] = (
        "closed"
    )
    models: Annotated[dict[str, LimitSet], Field(default_factory=dict)]
    clusters: LimitSet = LimitSet()
    near_limit: Share = 0.8


class LadderConfig(StrictModel):
    """shadow: steps are recorded and change nothing.  steps: those an operator turned on, in order.
    cluster_cap, price_times, output_policy: what those steps do."""

    shadow: bool = True
    steps: tuple[Step, ...] = ("notify", "cluster_cap", "price_tier", "output_policy", "review", "suspend")
    cluster_cap: LimitSet = LimitSet(usd_per_day=Decimal(1))
    price_times: Annotated[Decimal, Field(ge=1, le=1000)] = Decimal(4)
    output_policy: OutputRules = OutputRules(logprobs=0, logit_bias=False, n=1, reasoning="withhold")
