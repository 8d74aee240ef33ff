"""Which limits a request is under, how large they are, and what the next request costs."""

from __future__ import annotations

import gc
import weakref
from decimal import Decimal
from typing import Any

import pytest

from limits_kit import DAY, NOON, USD, guard_config, identity, limit_set, tier_config
from spiritsafe.errors import BadInput
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._limits import buckets_for, price_times
from spiritsafe.serve._limits._windows import day_number, window_end, windows
from spiritsafe.serve._types import Demand, Identity, LadderState


def state(step: Any, *, shadow: bool = False) -> LadderState:
    return LadderState("account:acct_1", step, shadow, "test", "test", NOON)


def sizes(config: GuardConfig, who: Identity, model: str = "m", now: float = NOON) -> dict[str, int]:
    """Limit sizes by "subject rule"."""
    return {f"{limit.subject} {limit.rule}": limit.size for limit in buckets_for(config, who, model, now).limits}


def test_a_request_is_under_the_limits_of_all_it_belongs_to() -> None:
    config = guard_config(
        tiers={"default": {"requests_per_min": 60, "usd_per_day": "0.5"}},
        organisations={"acme": {"usd_per_day": 200}},
        limits={"models": {"m": {"concurrency": 9}}, "clusters": {"usd_per_month": 7}},
    )
    who = identity(org="acme", cluster="c4", key_limits=limit_set(tokens_per_min=11))
    assert sizes(config, who) == {
        "key tokens_per_min": 11,
        "account requests_per_min": 60,
        "account usd_per_day": USD // 2,
        "cluster usd_per_month": 7 * USD,
        "organisation usd_per_day": 200 * USD,
        "model concurrency": 9,
    }
    assert sizes(config, who, "n").keys() == sizes(config, who).keys() - {"model concurrency"}
    plain = identity()
    assert sizes(config, plain).keys() == {"account requests_per_min", "account usd_per_day", "model concurrency"}
    scopes = {limit.scope for limit in buckets_for(config, who, "m", NOON).limits}
    assert scopes == {"key:key_of_acct_1", "account:acct_1", "cluster:c4", "org:acme", "model:m"}


def test_each_rule_takes_its_own_measure() -> None:
    rules = ["requests_per_min", "requests_per_day", "tokens_per_min", "input_tokens_per_min", "output_tokens_per_min",
             "tokens_per_day", "usd_per_day", "usd_per_month", "usd_lifetime", "concurrency"]  # fmt: skip
    plan = buckets_for(tier_config(**dict.fromkeys(rules, 5)), identity(), "m", NOON)
    taken = {bucket.limit.rule: bucket.amount for bucket in plan.demand(Demand(tokens_in=30, tokens_out=7, nano=11))}
    assert taken == {
        "requests_per_min": 1, "requests_per_day": 1, "tokens_per_min": 37, "input_tokens_per_min": 30,
        "output_tokens_per_min": 7, "tokens_per_day": 37, "usd_per_day": 11, "usd_per_month": 11, "usd_lifetime": 11,
        "concurrency": 1,
    }  # fmt: skip
    assert {limit.rule: limit.window for limit in plan.limits if limit.window} == {
        "requests_per_day": "2026-11-24", "tokens_per_day": "2026-11-24", "usd_per_day": "2026-11-24",
        "usd_per_month": "2026-11", "usd_lifetime": "all",
    }  # fmt: skip


def test_an_accounts_own_limits_replace_the_tiers_rule_by_rule() -> None:
    config = tier_config(requests_per_min=60, usd_per_day=5, shadow=True)
    who = identity(limits=limit_set(usd_per_day=9, concurrency=2))
    assert sizes(config, who) == {
        "account requests_per_min": 60,
        "account usd_per_day": 9 * USD,
        "account concurrency": 2,
    }
    assert all(limit.shadow for limit in buckets_for(config, who, "m", NOON).limits)
    enforced = identity(limits=limit_set(shadow=["concurrency"], concurrency=2))
    shadows = {limit.rule: limit.shadow for limit in buckets_for(config, enforced, "m", NOON).limits}
    assert shadows == {"requests_per_min": False, "usd_per_day": False, "concurrency": True}


def test_a_lifetime_allowance_grows_with_the_accounts_age_in_utc_days() -> None:
    config = tier_config(usd_lifetime=100, usd_lifetime_per_day="0.5")
    who = identity(created=NOON - 10 * DAY + 3600)
    assert sizes(config, who)["account usd_lifetime"] == 105 * USD
    assert sizes(config, who, now=NOON + DAY)["account usd_lifetime"] == 105 * USD + USD // 2
    assert sizes(config, identity(created=NOON + 9 * DAY))["account usd_lifetime"] == 100 * USD


@pytest.mark.parametrize(
    ("ladder", "step", "shadow", "capped"),
    [
        ({"shadow": False}, "cluster_cap", False, True),
        ({"shadow": False}, "review", False, True),
        ({"shadow": False}, "notify", False, False),
        ({"shadow": False}, "cluster_cap", True, False),
        ({"shadow": True}, "review", False, False),
        ({"shadow": False, "steps": ["notify", "review"]}, "review", False, False),
    ],
)
def test_the_ladders_cap_acts_when_it_is_enacted(ladder: Any, step: Any, shadow: bool, capped: bool) -> None:
    config = guard_config(ladder=ladder | {"cluster_cap": {"usd_per_day": 1}}, tiers={"default": {"usd_per_day": 5}})
    alone = identity(account_step=state(step, shadow=shadow))
    assert sizes(config, alone) == {"account usd_per_day": USD if capped else 5 * USD}
    linked = identity(cluster="c4", cluster_step=state(step, shadow=shadow))
    expected = {"account usd_per_day": 5 * USD} | ({"cluster usd_per_day": USD} if capped else {})
    assert sizes(config, linked) == expected


def test_of_two_limits_on_one_counter_the_lower_enforced_one_counts() -> None:
    def of(clusters: Any, cap: Any) -> tuple[int, bool]:
        config = guard_config(limits={"clusters": clusters}, ladder={"shadow": False, "cluster_cap": cap})
        (limit,) = buckets_for(config, identity(cluster="c", cluster_step=state("review")), "m", NOON).limits
        return limit.size, limit.shadow

    assert of({"usd_per_day": 3}, {"usd_per_day": 2}) == (2 * USD, False)
    assert of({"usd_per_day": 2}, {"usd_per_day": 3}) == (2 * USD, False)
    assert of({"usd_per_day": 1, "shadow": True}, {"usd_per_day": 3}) == (3 * USD, False)
    assert of({"usd_per_day": 1, "shadow": True}, {"usd_per_day": 3, "shadow": True}) == (USD, True)


def test_what_happens_while_the_state_is_away_is_per_rule() -> None:
    def answers(when: Any, **more: Any) -> dict[str, bool]:
        config = guard_config(
            tiers={"default": {"usd_per_day": 1, "concurrency": 2} | more}, limits={"when_state_is_down": when}
        )
        return {limit.rule: limit.open_when_down for limit in buckets_for(config, identity(), "m", NOON).limits}

    assert answers("closed") == {"usd_per_day": False, "concurrency": False}
    assert answers("open") == {"usd_per_day": True, "concurrency": True}
    assert answers({"concurrency": "open"}) == {"usd_per_day": False, "concurrency": True}
    assert answers({"default": "open", "usd_per_day": "closed"}) == {"usd_per_day": False, "concurrency": True}
    assert answers("closed", shadow=["concurrency"]) == {"usd_per_day": False, "concurrency": True}


def test_plans_are_kept_until_identity_config_or_day_change() -> None:
    config, who = tier_config(usd_per_day=1), identity()
    plan = buckets_for(config, who, "m", NOON)
    assert buckets_for(config, who, "m", NOON + 60) is plan
    assert buckets_for(config, who, "n", NOON) is not plan
    assert buckets_for(config, identity(), "m", NOON) is not plan
    assert buckets_for(tier_config(usd_per_day=2), who, "m", NOON).limits[0].size == 2 * USD
    tomorrow = buckets_for(config, who, "m", NOON + DAY)
    assert [limit.window for limit in tomorrow.limits] == ["2026-11-25"]


def test_a_plan_goes_with_its_identity() -> None:
    config, who = tier_config(usd_per_day=1), identity()
    plan = weakref.ref(buckets_for(config, who, "m", NOON).limits[0].__class__)  # the class stays: slots hold no refs
    gone = weakref.ref(who)
    assert plan() is not None
    del who
    gc.collect()
    assert gone() is None


def test_the_price_rises_with_volume_and_with_suspicion() -> None:
    schedule = [{"above_usd": 100, "times": 3}, {"above_usd": 10, "times": "1.5"}]
    config = guard_config(tiers={"default": {"schedule": schedule}}, ladder={"shadow": False, "price_times": 4})
    who = identity()
    assert [price_times(config, who, Decimal(spent)) for spent in ("0", "9.99", "10", "99", "100")] == [
        1, 1, Decimal("1.5"), Decimal("1.5"), 3,
    ]  # fmt: skip
    suspect = identity(account_step=state("price_tier"))
    assert price_times(config, suspect, Decimal(100)) == 12
    assert price_times(config, identity(account_step=state("price_tier", shadow=True)), Decimal(0)) == 1


def test_a_price_schedule_makes_the_month_count_although_nothing_limits_it() -> None:
    config = guard_config(tiers={"default": {"schedule": [{"above_usd": 1, "times": 2}]}})
    (limit,) = buckets_for(config, identity(), "m", NOON).limits
    assert (limit.rule, limit.scope, limit.open_when_down, limit.near) == ("usd_per_month", "account:acct_1", True, 0)
    assert limit.size == 2**53 - 1


def test_limits_beyond_what_is_counted_exactly_are_refused() -> None:
    for rule, size in (("usd_per_day", 10**7), ("tokens_per_min", 10**12)):
        with pytest.raises(BadInput, match=rule):
            tier_config(**{rule: size})


def test_windows() -> None:
    assert windows(day_number(NOON)) == ("2026-11-24", "2026-11", "all")
    assert window_end("2026-11-24") == NOON + DAY / 2
    assert window_end("2026-11") == NOON + DAY / 2 + 6 * DAY
    assert window_end("2026-12") == window_end("2026-12-31")
    assert windows(day_number(window_end("2026-12")))[:2] == ("2027-01-01", "2027-01")
    assert window_end("all") == float("inf")
