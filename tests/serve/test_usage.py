"""What an account used: from real ledger rows, by window, day and model, with what its caps leave."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import accounts_kit as kit
from spiritsafe.ledger import Ledger, LedgerRow, verify_ledger
from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._config import LimitSet
from spiritsafe.serve._usage import usage_response
from spiritsafe.state import Database

DAY = 86400.0
MILLI = 10**9  # pico-dollars


async def fill(db: Database, account: str, key: str, other: str) -> None:
    """Today two replies of `small` and one of `large`; one 3 days ago, one 40 days ago; somebody else's."""
    ledger = await Ledger.open(db, commit_ms=1, clock=kit.Clock())
    rows = [
        (0, account, key, "small", 100, 10, 2 * MILLI), (0, account, "elsewhere", "small", 50, 5, 1 * MILLI),
        (0, account, key, "large", 7, 1, 4 * MILLI), (3, account, key, "small", 1000, 0, 8 * MILLI),
        (40, account, key, "gone", 1, 1, 16 * MILLI), (0, other, "k3", "small", 999, 999, 999 * MILLI),
    ]  # fmt: skip
    for number, (ago, who, used, model, tokens_in, tokens_out, pico) in enumerate(rows):
        ledger.append(
            LedgerRow(
                ts=kit.NOW - ago * DAY, request_id=f"r{number}", account=who, key_id=used, model=model,
                tokens_in=tokens_in, tokens_out=tokens_out, pico=pico, org="acme",
            )
        )  # fmt: skip
    await ledger.flush()
    await ledger.aclose()
    assert (await verify_ledger(db)).ok, "the totals are those of the rows"


async def test_what_was_used_and_what_is_left(database_url: str, tmp_path: Path) -> None:
    config = kit.config(organisations={"acme": {"usd_per_month": 3}})
    async with await Database.open(database_url) as db:
        accounts = await Accounts.open(db, kit.secrets(tmp_path), config, kit.Events(), clock=kit.Clock(kit.NOW - DAY))
        own = LimitSet(tokens_per_day=200, usd_per_day=Decimal("0.01"), usd_lifetime_per_day=Decimal("0.5"))
        made = await accounts.add("a", org="acme", limits=own)
        issued = await accounts.issue_key("a", limits=LimitSet(requests_per_day=10))
        await fill(db, made.id, issued.key.id, (await accounts.add("b")).id)
        who = accounts.authenticate(issued.text.encode())
        assert who is not None
        said = await usage_response(who, db, config, kit.NOW)

    assert said["account"] == made.id and said["tier"] == "default"
    assert said["today"] == {"requests": 3, "input_tokens": 157, "output_tokens": 16, "usd": 0.007}
    assert said["month"] == {"requests": 4, "input_tokens": 1157, "output_tokens": 16, "usd": 0.015}
    assert said["lifetime"]["requests"] == 5 and said["lifetime"]["usd"] == 0.031
    models = {entry["model"]: entry for entry in said["models"]}
    assert set(models) == {"small", "large"}
    assert models["small"]["today"] == {"requests": 2, "input_tokens": 150, "output_tokens": 15, "usd": 0.003}
    assert models["large"]["lifetime"]["usd"] == 0.004 and models["small"]["month"]["usd"] == 0.011
    assert len(said["days"]) == 31 and said["days"][-1]["date"] == "2026-11-18"
    assert [day["requests"] for day in said["days"]][-4:] == [1, 0, 0, 3]
    assert sum(day["requests"] for day in said["days"]) == 4

    limits: dict[Any, Any] = {(limit["of"], limit["rule"]): limit for limit in said["limits"]}
    assert limits["account", "usd_per_day"] == {
        "rule": "usd_per_day", "of": "account", "limit": 0.01, "used": 0.007, "left": 0.003,
        "resets": "2026-11-19T00:00:00Z",
    }  # fmt: skip
    assert limits["account", "tokens_per_day"]["left"] == 200 - 173
    lifetime = limits["account", "usd_lifetime"]
    assert lifetime["limit"] == 100.5 and lifetime["grows_usd_per_day"] == 0.5 and lifetime["resets"] is None
    assert limits["account", "requests_per_min"]["limit"] == 600
    assert limits["account", "requests_per_min"]["used"] is None, "it comes back by itself"
    assert limits["key", "requests_per_day"]["used"] == 2
    assert limits["organisation", "usd_per_month"]["used"] == 1.014, "everybody's in the organisation"


async def test_a_new_account_used_nothing(database_url: str, tmp_path: Path) -> None:
    config = kit.config(limits={"clusters": {"usd_per_day": 1}}, tiers={"default": {"usd_per_day": 5, "shadow": True}})
    async with await Database.open(database_url) as db:
        accounts = await Accounts.open(db, kit.secrets(tmp_path), config)
        made = await accounts.add("a", cluster="c9")
        who = accounts.identity(made.id)
        assert who is not None
        said = await usage_response(who, db, config, kit.NOW)
    nothing = {"requests": 0, "input_tokens": 0, "output_tokens": 0, "usd": 0.0}
    assert said["today"] == said["month"] == said["lifetime"] == nothing
    assert all(day | nothing == day for day in said["days"])
    assert said["limits"] == [], "neither what is in shadow nor the cluster's"
    assert "c9" not in repr(said), "whom one is linked to is not told"
