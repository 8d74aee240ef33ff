"""`spiritsafe accounts ladder …`: decisions on a real database, as a running guard, the ledger and the outbox have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_accounts_cli import CONFIG, asked, run

from spiritsafe.config import load_config
from spiritsafe.ledger import verify_ledger
from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._secrets import GuardSecrets
from spiritsafe.serve._steps import enacted
from spiritsafe.state import Database

LADDER = """
ladder: {shadow: false}
webhooks: [{url: "http://127.0.0.1:9/x", events: [flagged, suspended]}]
"""


@pytest.fixture
def folder(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guard.yaml").write_text(CONFIG.format(url=database_url) + LADDER)
    return tmp_path


async def test_decisions_from_the_command_line_act_and_are_on_record(folder: Path, database_url: str) -> None:
    config = load_config(folder / "guard.yaml", GuardConfig)
    ada = asked("add", "Ada", "--cluster", "c4")["id"]
    bob = asked("add", "Bob", "--cluster", "c4")["id"]
    state = asked("ladder", "step", "Ada", "price_tier", "--reason", "coverage grows", "--by", "ann")
    assert (state["subject"], state["step"], state["shadow"]) == (f"account:{ada}", "price_tier", False)
    asked("ladder", "step", "cluster:c4", "suspend", "--reason", "bulk copying", "--appeal", "mail us")
    shown = asked("ladder", "status")
    assert [(s["subject"], s["step"]) for s in shown["ladder"]] == [
        (f"account:{ada}", "price_tier"), ("cluster:c4", "suspend"),
    ]  # fmt: skip
    async with await Database.open(database_url) as db:
        serving = await Accounts.open(db, GuardSecrets.load(folder / "guard.secrets"), config)
        for account in (ada, bob):
            who = serving.identity(account)
            assert who is not None and who.suspended and (who.reason, who.appeal) == ("bulk copying", "mail us")
        lifted = asked("ladder", "lift", "cluster:c4", "--reason", "they explained", "--by", "ann")
        assert (lifted["step"], lifted["decided_by"]) == ("observe", "ann")
        await serving.refresh()
        who = serving.identity(ada)
        assert who is not None and not who.suspended
        assert enacted(who, config.ladder) == {"notify", "cluster_cap", "price_tier"}
        history = asked("ladder", "history", "cluster:c4")["decisions"]
        assert [d["reason"] for d in history] == ["bulk copying", "they explained"] and history[0]["features"] == {}
        messages = [json.loads(row["body"]) for row in await db.fetch("SELECT body FROM outbox")]
        assert sorted((m["event"], m["data"]["subject"]) for m in messages) == sorted(
            [("flagged", f"account:{ada}"), ("flagged", "cluster:c4")]
            + [("suspended", f"account:{account}") for account in (ada, bob)]
        )
        assert (await verify_ledger(db)).ok


def test_what_makes_no_sense_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guard.yaml").write_text(CONFIG.format(url="sqlite:///guard.db"))
    asked("add", "Ada")
    for arguments, said in (
        (("step", "Ada", "banish", "--reason", "x"), "the steps are"),
        (("step", "Aga", "notify", "--reason", "x"), "did you mean Ada?"),
        (("step", "cluster:none", "notify", "--reason", "x"), "no account has that cluster"),
        (("lift", "Ada", "--reason", " "), "reason"),
        (("step", "Ada", "notify"), "--reason"),
    ):
        done = run("ladder", *arguments)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    done = run("ladder", "step", "Ada", "suspend", "--reason", "x", "--by", "watch")
    assert done.returncode == 3 and "takes a person" in done.stderr
    told = run("ladder", "step", "Ada", "suspend", "--reason", "x")
    assert told.returncode == 0 and "nothing changes" in told.stdout
    status = run("ladder", "status")
    assert "ladder.shadow is true" in status.stderr and "suspend" in status.stdout
    assert asked("show", "Ada")["status"] == "active"
