"""`spiritsafe accounts …` end to end: a real database, a real ledger, and what a running guard would see."""

from __future__ import annotations

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spiritsafe.cli import main
from spiritsafe.config import load_config
from spiritsafe.ledger import verify_ledger
from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._config import GuardConfig, LimitSet
from spiritsafe.serve._limits import buckets_for
from spiritsafe.serve._secrets import GuardSecrets
from spiritsafe.state import Database

CONFIG = """
state: {{database: "{url}"}}
upstreams:
  - {{name: local, base_url: "http://127.0.0.1:9/v1", models: [small], price: {{input_per_mtok: 1, output_per_mtok: 2}}}}
terms: {{version: "2026-11", url: "https://example.org/terms"}}
tiers: {{default: {{usd_per_day: 5}}, gold: {{}}}}
organisations: {{acme: {{usd_per_day: 50}}}}
"""


@pytest.fixture
def folder(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guard.yaml").write_text(CONFIG.format(url=database_url))
    return tmp_path


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guard.yaml").write_text(CONFIG.format(url="sqlite:///guard.db"))
    return tmp_path


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str) -> Done:
    """The command in this process, in the current folder; on a thread, so that it may have an event loop of its own."""
    out, err = io.StringIO(), io.StringIO()

    def command() -> int:
        try:
            main(["accounts", *arguments])
        except SystemExit as end:
            return int(end.code or 0)
        raise AssertionError("main always exits")

    with redirect_stdout(out), redirect_stderr(err), ThreadPoolExecutor(1) as thread:
        code = thread.submit(command).result()
    return Done(code, out.getvalue(), err.getvalue())


def asked(*arguments: str) -> Any:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_the_life_of_an_account(folder: Path, database_url: str) -> None:
    config = load_config(folder / "guard.yaml", GuardConfig)
    made = asked("add", "Ada Ltd", "--org", "acme", "--payment-id", "pm_7", "--limit", "usd_per_day=2.5")
    assert made["limits"] == {"usd_per_day": 2.5} and made["org"] == "acme"
    issued = asked("key", "issue", "Ada Ltd", "--scope", "inference", "--scope", "usage", "--expires-days", "30")
    assert set(issued) == {"key_id", "key"} and issued["key"].split("_")[1] == issued["key_id"]
    async with await Database.open(database_url) as db:  # as a running guard has it
        serving = await Accounts.open(db, GuardSecrets.load(folder / "guard.secrets"), config)
        key = issued["key"].encode()
        who = serving.authenticate(key)
        assert who is not None and who.account == made["id"] and who.scopes == {"inference", "usage"}

        asked(
            "set", "Ada Ltd", "--tier", "gold", "--limit", "usd_per_day=tier", "--limit", "concurrency=3", "--by", "ann"
        )
        asked("terms", "accept", made["id"], "--version", "2026-11")
        asked("link", "Ada Ltd", "--cluster", "c4")
        assert (
            asked("suspend", "Ada Ltd", "--reason", "copying", "--appeal", "mail us", "--by", "ann")["status"]
            == "suspended"
        )
        await serving.refresh()
        who = serving.authenticate(key)
        assert who is not None and who.suspended and (who.reason, who.appeal) == ("copying", "mail us")
        assert who.tier == "gold" and who.limits == LimitSet(concurrency=3)
        assert who.terms_version == "2026-11" and who.cluster == "c4"

        asked("restore", "Ada Ltd")
        asked("unlink", "Ada Ltd")
        asked("set", "Ada Ltd", "--org", "none")
        rotated = asked("key", "rotate", issued["key_id"], "--overlap-hours", "1")
        asked("key", "set", rotated["key_id"], "--limit", "requests_per_min=7", "--name", "new one")
        await serving.refresh()
        who = serving.authenticate(rotated["key"].encode())
        assert who is not None and not who.suspended and who.cluster is None and who.org is None
        assert who.key_limits.requests_per_min == 7 and serving.authenticate(key) is not None
        assert asked("key", "revoke", issued["key_id"])["state"] == "revoked"
        await serving.refresh()
        assert serving.authenticate(key) is None

        shown = asked("show", "Ada Ltd")
        assert {key["key_id"]: key["state"] for key in shown["keys"]} == {
            issued["key_id"]: "revoked", rotated["key_id"]: "active",
        }  # fmt: skip
        events = [json.loads(row["payload"]) for row in await db.fetch("SELECT payload FROM ledger ORDER BY seq")]
        assert [event["name"] for event in events] == [
            "key_issued", "account_changed", "terms_accepted", "account_changed", "suspended", "restored",
            "account_changed", "account_changed", "key_issued", "key_changed", "key_revoked",
        ]  # fmt: skip
        assert events[1]["subject"] == made["id"] and events[1]["data"] == {
            "before": {"tier": "default", "limits": {"usd_per_day": 2.5}},
            "after": {"tier": "gold", "limits": {"concurrency": 3}},
            "decided_by": "ann",
        }
        assert events[3]["data"] == {"before": {"cluster": None}, "after": {"cluster": "c4"}, "decided_by": "operator"}
        assert events[4]["data"] == {"reason": "copying", "appeal": "mail us", "decided_by": "ann"}
        assert events[9]["data"] == {
            "key_id": rotated["key_id"],
            "before": {"limits": {}},
            "after": {"limits": {"requests_per_min": 7}},
            "decided_by": "operator",
        }
        assert (await verify_ledger(db)).ok
        dump = repr(
            [await db.fetch(f"SELECT * FROM {table}") for table in ("accounts", "api_keys", "ledger", "counters")]
        )
        for text in (issued["key"], rotated["key"]):
            assert text.split("_")[2] not in dump


def test_people_get_lines_and_secrets_only_once(local: Path) -> None:
    added = run("add", "Ada Ltd", "--org", "acne")
    assert added.stdout.startswith("added acct_") and "accounts key issue" in added.stdout
    assert "made now" in added.stderr and "organisations in the config has no acne" in added.stderr
    issued = run("key", "issue", "Ada Ltd", "--name", "laptop")
    key = issued.stdout.strip()
    assert key.startswith("ss_") and "not shown again" in issued.stderr and key not in issued.stderr
    shown, listed = run("show", "Ada Ltd"), run("list")
    assert "laptop" in shown.stdout and "Ada Ltd" in listed.stdout and "made now" not in listed.stderr
    assert key.split("_")[2] not in shown.stdout + listed.stdout
    assert [a["name"] for a in asked("list", "--search", "ada", "--active")["accounts"]] == ["Ada Ltd"]
    assert asked("list", "--suspended") == {"accounts": []}
    assert run("suspend", "Ada Ltd").returncode == 0, "reason and appeal have defaults"
    assert (local / "guard.secrets").stat().st_mode & 0o777 == 0o600
    assert (local / "guard.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "Ada Lt"], "did you mean Ada Ltd?"),
        (["add", "Ada Ltd"], "choose another"),
        (["add", "Bob", "--tier", "glod"], "did you mean gold?"),
        (["add", "Bob", "--limit", "usd_perday=3"], "did you mean usd_per_day?"),
        (["add", "Bob", "--limit", "usd_per_day=-3"], "usd_per_day"),
        (["add", "Bob", "--limit", "usd_per_day"], "RULE=VALUE"),
        (["set", "Ada Ltd"], "nothing to change"),
        (["key", "issue", "Ada Ltd", "--scope", "interference"], "did you mean inference?"),
        (["key", "issue", "Ada Ltd", "--expires-days", "-1"], "must lie ahead"),
        (["key", "revoke", "nope"], "no key has that id"),
        (["key", "set", "nope"], "nothing to change"),
        (["terms", "accept", "Ada Ltd", "--version", "2025-01"], "2026-11"),
        (["list", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_one_line_that_helps(local: Path, arguments: list[str], said: str) -> None:
    assert run("add", "Ada Ltd").returncode == 0
    failed = run(*arguments)
    assert failed.returncode == 2, failed.stderr
    assert said in failed.stderr and "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_a_whole_key_typed_as_an_id_is_not_repeated(local: Path) -> None:
    run("add", "Ada Ltd")
    key = asked("key", "issue", "Ada Ltd")["key"]
    failed = run("key", "revoke", key)
    assert failed.returncode == 2 and key.split("_")[1] in failed.stderr
    assert key.split("_")[2] not in failed.stderr + failed.stdout


def test_another_replicas_secrets_are_refused(local: Path) -> None:
    run("add", "Ada Ltd")
    (local / "guard.secrets").unlink()
    failed = run("list")
    assert failed.returncode == 2 and "another replica" in failed.stderr


async def test_none_lifts_the_tiers_limit_and_tier_brings_it_back(folder: Path, database_url: str) -> None:
    config = load_config(folder / "guard.yaml", GuardConfig)
    made = asked("add", "Ada", "--limit", "usd_per_day=none", "--limit", "shadow=[concurrency]")
    assert made["limits"] == {"usd_per_day": None, "shadow": ["concurrency"]}
    shown = run("show", "Ada")
    assert 'usd_per_day=none shadow=["concurrency"]' in shown.stdout

    async def dollars() -> list[int]:
        async with await Database.open(database_url) as db:
            serving = await Accounts.open(db, GuardSecrets.load(folder / "guard.secrets"), config)
            who = serving.identity(made["id"])
            assert who is not None
            plan = buckets_for(config, who, config.models[0], time.time())
            return [limit.size for limit in plan.limits if limit.rule == "usd_per_day"]

    assert config.tiers["default"].usd_per_day == 5 and await dollars() == []
    assert asked("set", "Ada", "--limit", "usd_per_day=tier", "--limit", "shadow=none")["limits"] == {"shadow": False}
    assert await dollars() == [5 * 10**9]
    assert asked("set", "Ada", "--limit", "usd_per_day=0")["limits"]["usd_per_day"] == 0
    assert await dollars() == [0]


async def test_those_who_asked_are_told_of_a_suspension_once(folder: Path, database_url: str) -> None:
    hook = '{url: "http://127.0.0.1:9/x", events: [suspended], secret_env: NOT_SET_HERE}'  # the guard has it
    with open(folder / "guard.yaml", "a") as file:
        file.write(f"webhooks: [{hook}]\n")
    made = asked("add", "Ada")
    asked("suspend", "Ada", "--reason", "copying", "--by", "ann")
    asked("suspend", "Ada", "--reason", "copying still", "--by", "ann")  # another reason, no other news
    async with await Database.open(database_url) as db:
        (row,) = await db.fetch("SELECT * FROM outbox")
        assert row["next_at"] is not None
        assert json.loads(row["body"])["data"] == {
            "subject": f"account:{made['id']}", "reason": "copying", "decided_by": "ann",
        }  # fmt: skip
        asked("restore", "Ada")
        asked("suspend", "Ada", "--reason", "again")
        assert len(await db.fetch("SELECT * FROM outbox")) == 2
