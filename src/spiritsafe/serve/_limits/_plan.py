"""Which limits a request is under: worked out once per account, key, model and day, then only filled with amounts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import cast, get_args
from weakref import WeakKeyDictionary

from spiritsafe.serve._config import GuardConfig, LimitsConfig, LimitSet, Rule
from spiritsafe.serve._limits._model import ALLOWANCE, RULES, UNLIMITED, Bucket, Limit, amounts_of
from spiritsafe.serve._limits._windows import day_number, windows
from spiritsafe.serve._steps import acts
from spiritsafe.serve._types import Demand, Identity

__all__ = ["Plan", "buckets_for", "price_times"]

_NANO = 10**9
_ORDER: tuple[Rule, ...] = get_args(Rule)


class Plan:
    """The limits of one account, key and model on one day."""

    __slots__ = ("limits",)

    def __init__(self, limits: Iterable[Limit]) -> None:
        self.limits = tuple(limits)

    def demand(self, demand: Demand) -> tuple[Bucket, ...]:
        """What a request takes of each limit; for `Limiter.reserve`."""
        amounts = amounts_of(demand)
        return tuple([Bucket(limit, amounts[limit.measure]) for limit in self.limits])


@dataclass(slots=True)
class _Known:
    """The plans of one identity: good for one config and one UTC day."""

    config: GuardConfig
    day: int
    plans: dict[str, Plan] = field(default_factory=dict)


# An identity that changes is another object, so nothing here outlives what it was worked out from.
_known: WeakKeyDictionary[Identity, _Known] = WeakKeyDictionary()


def buckets_for(config: GuardConfig, identity: Identity, model: str, now: float) -> Plan:
    """The limits a request is under: its key's, account's, organisation's, linked cluster's and model's.

    now: Unix seconds; its UTC day and month are the windows that count.
    """
    day = int(now // 86400)
    known = _known.get(identity)
    if known is None or known.day != day or known.config is not config:
        known = _known[identity] = _Known(config, day)
    plan = known.plans.get(model)
    if plan is None:
        plan = known.plans[model] = Plan(_limits(config, identity, model, now))
    return plan


def price_times(config: GuardConfig, identity: Identity, month_usd: Decimal) -> Decimal:
    """How many times the list price the next request of this account costs.

    The tier's schedule (the marginal price rises with volume) times the ladder's price step (it rises with suspicion).
    A request is priced by what was settled before it: the one that passes a threshold still costs the lower price.

    month_usd: dollars settled this month; from `Limiter.month_usd`.
    """
    times = Decimal(1)
    reached = [step for step in config.tiers[identity.tier].schedule if step.above_usd <= month_usd]
    if reached:
        times = max(reached, key=lambda step: step.above_usd).times
    if acts(identity, "price_tier", config.ladder):
        times *= config.ladder.price_times
    return times


def _limits(config: GuardConfig, identity: Identity, model: str, now: float) -> list[Limit]:
    tier = config.tiers[identity.tier]
    own = identity.limits
    given = own.model_fields_set
    merged = {name: getattr(own if name in given else tier, name) for name in LimitSet.model_fields}
    account = [LimitSet.model_construct(**merged)]
    cluster = [config.limits.clusters] if identity.cluster is not None else []
    if acts(identity, "cluster_cap", config.ladder):
        (cluster if identity.cluster is not None else account).append(config.ladder.cluster_cap)
    age_days = max(0, day_number(now) - day_number(identity.created))
    subjects: list[tuple[str, str | None, str, list[LimitSet]]] = [
        ("key", identity.key_id, "key", [identity.key_limits]),
        ("account", identity.account, "account", account),
        ("cluster", identity.cluster, "cluster", cluster),
        ("organisation", identity.org, "org", _named(config.organisations, identity.org)),
        ("model", model, "model", _named(config.limits.models, model)),
    ]
    found = [
        limit
        for subject, name, scope, sets in subjects
        if name is not None
        for limit in _of(config.limits, subject, name, f"{scope}:{name}", sets, age_days, now)
    ]
    if tier.schedule and not any(limit.rule == "usd_per_month" and limit.subject == "account" for limit in found):
        # the schedule needs to know what was spent, limited or not
        scope = f"account:{identity.account}"
        found.append(_limit(config.limits, "usd_per_month", "account", identity.account, scope, now))
    return found


def _of(
    config: LimitsConfig, subject: str, name: str, scope: str, sets: list[LimitSet], age_days: int, now: float
) -> Iterable[Limit]:
    """The limits of one subject. Of several on one rule the lowest counts; those in shadow only if all are."""
    for rule in _ORDER:
        candidates = [s for s in sets if getattr(s, rule) is not None]
        enforced = [s for s in candidates if not _shadow(s, rule)]
        sized = [(_size(s, rule, age_days), s) for s in enforced or candidates]
        if sized:
            size, chosen = min(sized, key=lambda pair: pair[0])
            daily = int(chosen.usd_lifetime_per_day * _NANO) if rule == "usd_lifetime" else 0
            yield _limit(config, rule, subject, name, scope, now, size=size, daily=daily, shadow=not enforced)


def _limit(
    config: LimitsConfig,
    rule: Rule,
    subject: str,
    name: str,
    scope: str,
    now: float,
    *,
    size: int = UNLIMITED,
    daily: int = 0,
    shadow: bool = False,
) -> Limit:
    facts = RULES[rule]
    near = 0
    if facts.kind == ALLOWANCE and size != UNLIMITED and not shadow:
        near = int((size * Decimal(str(config.near_limit))).to_integral_value(ROUND_CEILING))
    down = config.when_state_is_down
    answer = down if isinstance(down, str) else down.get(rule, down.get("default", "closed"))
    return Limit(
        rule,
        subject,
        name,
        scope,
        size,
        window="" if facts.window is None else windows(day_number(now))[facts.window],
        daily=daily,
        near=near,
        shadow=shadow,
        # what refuses nothing must not refuse because the state is away
        open_when_down=answer == "open" or shadow or size == UNLIMITED,
    )


def _named(sets: Mapping[str, LimitSet], name: str | None) -> list[LimitSet]:
    return [sets[name]] if name is not None and name in sets else []


def _shadow(limits: LimitSet, rule: Rule) -> bool:
    return limits.shadow if isinstance(limits.shadow, bool) else rule in limits.shadow


def _size(limits: LimitSet, rule: Rule, age_days: int) -> int:
    value = getattr(limits, rule)
    if not isinstance(value, Decimal):
        return cast(int, value)
    if rule == "usd_lifetime":
        value += limits.usd_lifetime_per_day * age_days
    return min(int(value * _NANO), UNLIMITED)
