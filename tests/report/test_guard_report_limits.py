"""Whose allowance a guard's report calls nearly used up."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard_report_kit import report
from sample_guard import guard_config, open_guard
from spiritsafe.serve._config import GuardConfig, LimitSet


@pytest.fixture
def config(database_url: str, tmp_path: Path) -> GuardConfig:
    return guard_config(database_url, tmp_path)


async def near(config: GuardConfig, tmp_path: Path) -> set[tuple[str, str, str, int, bool]]:
    _, written = await report(config, tmp_path)
    return {
        (n.subject, n.name or n.id or "", n.rule, round(100 * n.share), n.shadow) for n in written.figures.near.found
    }


async def test_allowances_are_those_the_limiter_holds(config: GuardConfig, tmp_path: Path) -> None:
    tiers = {
        "default": {
            "usd_per_day": 1,
            "usd_per_month": 4,
            "usd_lifetime": 5,
            "tokens_per_day": 1000,
            "requests_per_day": 3,
        },
        "grows": {"usd_lifetime": 1, "usd_lifetime_per_day": "0.5"},
        "shade": {"usd_per_day": 1, "shadow": True},
    }
    config = guard_config(
        config.state.database,
        tmp_path,
        tiers=tiers,
        organisations={"acme": {"usd_per_day": 2}},
        limits={"models": {"large": {"usd_per_day": 1}}, "clusters": {"usd_per_day": "2.5"}},
    )
    async with open_guard(config) as guard:
        day = await guard.account("day", org="acme", cluster="c1")
        await guard.reply(day, usd=0.79, org="acme")
        await guard.reply(day, usd=0.01, org="acme")
        month = await guard.account("month", org="acme")
        await guard.reply(month, usd=1.1, org="acme")  # over the day, and the organisation with the one above
        await guard.reply(month, usd=2.2, days_ago=12)
        await guard.reply(month, usd=1.0, days_ago=25)  # another month, but the same life
        young = await guard.account("young", tier="grows", age_days=1)
        old = await guard.account("old", tier="grows", age_days=30)
        for account in (young, old):
            await guard.reply(account, usd=1.35, days_ago=0.2)
        await guard.reply(await guard.account("shade", tier="shade", cluster="c1"), usd=1.2)
        spared = await guard.account(
            "spared", limits=LimitSet(usd_per_day=100, tokens_per_day=10_000, requests_per_day=2)
        )
        await guard.reply(spared, usd=0.95, model="large", tokens_in=400, tokens_out=550)
        await guard.reply(await guard.account("words"), tokens_in=400, tokens_out=400)
    assert await near(config, tmp_path) == {
        ("account", "day", "usd_per_day", 80, False),
        ("account", "month", "usd_per_day", 110, False),
        ("account", "month", "usd_per_month", 82, False),
        ("account", "month", "usd_lifetime", 86, False),
        ("account", "young", "usd_lifetime", 90, False),
        ("account", "shade", "usd_per_day", 120, True),
        ("account", "words", "tokens_per_day", 80, False),
        ("organisation", "acme", "usd_per_day", 95, False),
        ("cluster", "c1", "usd_per_day", 80, False),
        ("model", "large", "usd_per_day", 95, False),
    }


async def test_nothing_allowed_and_accounts_on_lost_tiers_do_not_stop_it(config: GuardConfig, tmp_path: Path) -> None:
    async with open_guard(config) as guard:
        await guard.reply(await guard.account("lost", tier="gold"), usd=1)
        zero = await guard.account("zero", limits=LimitSet(usd_lifetime=0))
        await guard.reply(zero, usd=0.5)
    config = guard_config(config.state.database, tmp_path, tiers={"default": {}})
    page, written = await report(config, tmp_path)
    assert written.figures.near.unknown_tier == 1 and "1 account is on a tier that the config lacks" in page.text
    assert "nothing allowed" in page.text
