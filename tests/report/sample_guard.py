"""A guard's database with everything a report can show, written by the guard's own parts."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spiritsafe.config import parse_config
from spiritsafe.ledger import Ledger, LedgerRow
from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._canaries import Canaries
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._ladder import Ladder
from spiritsafe.serve._secrets import GuardSecrets
from spiritsafe.serve._twins import Twins
from spiritsafe.state import Database

NOW = 1_795_000_000.0  # 2026-11-18, 11:06 UTC
DAY = 86400.0
PERSONAL = ("somebody@example.org", "203.0.113.0/24", "Mozilla/9.9", "card_4711")
PROMPT = "Which tide table does the lighthouse of Nimmerland print on its ferry tickets?"


def guard_config(url: str, folder: Path, **changes: Any) -> GuardConfig:
    """Two models, three tiers, terms, a ladder that acts."""
    price = {"input_per_mtok": 1, "output_per_mtok": 2}
    data: dict[str, Any] = {
        "state": {"database": url, "secrets": str(folder / "guard.secrets")},
        "upstreams": [
            {"name": "local", "base_url": "http://127.0.0.1:9/v1", "models": ["small", "large"], "price": price}
        ],
        "tiers": {"default": {"usd_per_day": 5}, "gold": {"watermark": True, "logprobs": 5, "twin_share": 0.01}},
        "watermark": {"keys": str(folder / "keys.json")},
        "ladder": {"shadow": False, "steps": ["notify", "cluster_cap", "suspend"]},
        "terms": {"version": "2026-11", "url": "https://example.org/terms"},
    }
    return parse_config(data | changes, GuardConfig, where="test")


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class Guard:
    """The parts of a guard that write its database. `clock` is theirs."""

    config: GuardConfig
    db: Database
    ledger: Ledger
    accounts: Accounts
    clock: Clock
    rows: list[LedgerRow] = field(default_factory=list)

    async def account(self, name: str, *, age_days: float = 100, terms: str | None = "2026-11", **more: Any) -> str:
        self.clock.now = NOW - age_days * DAY
        added = await self.accounts.add(name, **more)
        if terms is not None:
            await self.accounts.accept_terms(added.id, terms)
        self.clock.now = NOW
        return added.id

    async def reply(self, account: str, *, days_ago: float = 0, usd: float = 0.0, **more: Any) -> None:
        """One row; `usd` is its price."""
        row = LedgerRow(
            ts=NOW - days_ago * DAY,
            request_id=f"req_{len(self.rows):024d}",
            account=account,
            key_id=f"key_{account}",
            pico=round(usd * 1e12),
            **{"model": "small"} | more,
        )
        self.rows.append(row)
        await self.ledger.append(row)

    @property
    def ladder(self) -> Ladder:
        return Ladder(self.db, self.config, self.accounts, self.ledger, clock=self.clock)


@asynccontextmanager
async def open_guard(config: GuardConfig, *, checkpoint_every_s: float = 300) -> AsyncIterator[Guard]:
    """A guard's database, migrated, with its writers. A checkpoint is signed when it closes."""
    secrets = GuardSecrets.load(config.state.secrets)
    clock = Clock()
    async with await Database.open(config.state.database) as db:
        ledger = await Ledger.open(
            db, signer=secrets.signer, commit_ms=1, checkpoint_every_s=checkpoint_every_s, clock=clock
        )
        try:
            accounts = await Accounts.open(db, secrets, config, ledger, clock=clock)
            yield Guard(config, db, ledger, accounts, clock)
        finally:
            await ledger.aclose()


async def fill(guard: Guard, name: Callable[[str], str] = lambda name: name) -> dict[str, str]:
    """A busy month: a few accounts, hundreds of replies of every kind; account ids by name.

    name: changes every name and free text.
    """
    rng = random.Random(11)
    ids = {
        "nordwind": await guard.account(name("nordwind"), tier="gold", org=name("windfirma")),
        "acme": await guard.account(name("acme"), org=name("acme-group")),
        "kepler": await guard.account(name("kepler"), cluster=name("ring7")),
        "tutor": await guard.account(name("tutor"), terms=None),
        "resold": await guard.account(name("resold")),
    }
    weights = (50, 25, 15, 8, 2)
    statuses = ("ok", "client_gone", "upstream_error", "stream_broken", "lost")
    for number in range(300):
        who = rng.choices(list(ids), weights)[0]
        gold = who == "nordwind"
        tokens_in, tokens_out = rng.randrange(10, 900), rng.randrange(10, 900)
        await guard.reply(
            ids[who],
            days_ago=40 * (299 - number) / 300,
            usd=(tokens_in + 2 * tokens_out) / 1e6,
            model=rng.choice(("small", "small", "large")),
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            status=rng.choices(statuses, (94, 2, 2, 1, 1))[0],
            latency_ms=rng.lognormvariate(6, 1),
            stream=rng.random() < 0.5,
            logprobs=5 if gold and rng.random() < 0.2 else None,
            policy=name("logprobs=5") if gold else "logprobs=0",
            watermark_key_id="epoch.1" if gold else None,
            account_slot=3 if gold else None,
            twin_commit="c" * 64 if gold and rng.random() < 0.1 else None,
            org=name("windfirma") if gold else None,
            end_user=PERSONAL[0],
            ip_prefix=PERSONAL[1],
            user_agent=PERSONAL[2],
            payment_id=PERSONAL[3],
        )
    await guard.ladder.apply(
        f"account:{ids['resold']}", "suspend", reason=name("sold answers on"), decided_by=name("M. Okafor"),
        appeal=name("write to trust"),
    )  # fmt: skip
    await guard.ladder.apply(
        f"cluster:{name('ring7')}", "cluster_cap", reason=name("one card, two names"), decided_by="watch"
    )
    await guard.ladder.apply(
        f"account:{ids['tutor']}", "output_policy", reason=name("asks why, always"), decided_by="watch"
    )
    canaries = await Canaries.open(guard.db, guard.config, guard.ledger, clock=guard.clock)
    await canaries.new(PROMPT, ["The tide table of Utopia", "The tide table of Avalon"])
    twins = Twins(guard.db, guard.config, clock=guard.clock)
    replies = [{"choices": [{"message": {"content": f"secret reply {i}"}}]} for i in range(2)]
    await twins.choose(
        request_id="req_twin", account=ids["nordwind"], model="small", request={"prompt": "secret prompt"},
        first=replies[0], second=replies[1],
    )  # fmt: skip
    return ids
