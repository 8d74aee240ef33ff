"""Backup and restore as docs/guard/operations.md says, run from the page, while a guard writes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import services
from spiritsafe.config import load_config
from spiritsafe.errors import BadInput
from spiritsafe.keys import load_keys, new_keys
from spiritsafe.ledger import Journal, Ledger, LedgerRow, read_ledger, recover, verify_ledger
from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._secrets import GuardSecrets
from spiritsafe.state import Database

PAGE = Path(__file__).parents[2] / "docs/guard/operations.md"


def block(section: str, after: str = "") -> str:
    """The first bash block of a section of the page, behind the words `after`."""
    text = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    if after:
        text = text.partition(after)[2]
    found = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert found, (section, after)
    return found[1]


async def bash(script: str, folder: Path, **environment: str) -> None:
    path = f"{Path(sys.executable).parent}:{_postgres_bin()}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", script, cwd=folder, env=os.environ | {"PATH": path} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


def _postgres_bin() -> str:
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))
    return str(newest[-1].parent) if newest else ""


def guard_yaml(folder: Path, url: str) -> None:
    (folder / "guard.yaml").write_text(
        f"state: {{database: '{url}', journal: guard.journal}}\n"
        "upstreams: [{name: local, base_url: 'http://127.0.0.1:1/v1', models: [m], price: {input_per_mtok: 1, output_per_mtok: 1}}]\n"
        "watermark: {keys: keys.json}\n"
        "tiers: {default: {usd_per_day: 1, watermark: true}}\n"
    )


def row_of(request_id: str, account: str) -> LedgerRow:
    return LedgerRow(
        ts=time.time(), request_id=request_id, account=account, key_id="k", model="m", tokens_in=3, tokens_out=4,
        pico=7_000_000, end_user="someone", ip_prefix="192.0.2.0/24",
    )  # fmt: skip


class Writing:
    """What a serving guard does to its files: requests journalled, answered and written to the ledger, without end."""

    def __init__(self, db: Database, journal: Journal, ledger: Ledger, account: str) -> None:
        self.db, self.journal, self.ledger, self.account = db, journal, ledger, account
        self.closed: list[str] = []

    async def run(self) -> None:
        number = 0
        while True:
            number += 1
            for part in range(5):
                name = f"req_{number}_{part}"
                self.journal.opened(name, {"account": self.account, "padding": "x" * 2000})
                row = row_of(name, self.account)
                self.journal.closed(row)
                self.closed.append(name)
                self.ledger.append(row)
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def serving(folder: Path, url: str) -> AsyncIterator[tuple[Writing, str]]:
    """A guard's parts at work in `folder`; the writing, and a customer's key."""
    guard_yaml(folder, url)
    new_keys(folder / "keys.json", marking={})
    config = load_config(folder / "guard.yaml", GuardConfig)
    secrets = GuardSecrets.load(folder / "guard.secrets")
    async with await Database.open(url) as db:
        ledger = await Ledger.open(db, signer=secrets.signer, commit_ms=20, checkpoint_every_s=0.2)
        # small, so that the journal is rewritten again and again while it is copied
        journal = Journal.open(folder / "guard.journal", "worker-0", large=20_000)
        ledger.on_commit = journal.forget
        accounts = await Accounts.open(db, secrets, config, ledger)
        account = await accounts.add("acme")
        key = (await accounts.issue_key(account.id)).text
        slot = await accounts.bind_slot(account.id)
        assert slot > 0
        writing = Writing(db, journal, ledger, account.id)
        task = asyncio.ensure_future(writing.run())
        try:
            yield writing, key
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await ledger.aclose()
            journal.close()


async def in_use(writing: Writing) -> None:
    async with asyncio.timeout(30):
        while len(writing.closed) < 200 or not await writing.db.fetch("SELECT seq FROM checkpoints"):
            await asyncio.sleep(0.01)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    made = tuple(tmp_path / name for name in ("old", "backup", "new"))
    for folder in made:
        folder.mkdir()
    return made  # type: ignore[return-value]


@pytest.fixture(params=["sqlite", "postgresql"])
def old_and_new(request: pytest.FixtureRequest, folders: tuple[Path, Path, Path]) -> tuple[str, str]:
    """The URL of a guard's database, and of the one it will be restored to."""
    if request.param == "sqlite":
        return f"sqlite:///{folders[0] / 'guard.db'}", f"sqlite:///{folders[2] / 'guard.db'}"
    port = request.getfixturevalue("postgres_port")
    return services.new_postgres_database(port), services.new_postgres_database(port)


async def test_a_backup_taken_while_serving_holds_all_that_came_before_it(
    folders: tuple[Path, Path, Path], old_and_new: tuple[str, str]
) -> None:
    old, backup, new = folders
    old_url, new_url = old_and_new
    kind = "SQLite" if old_url.startswith("sqlite") else "Postgres"
    async with serving(old, old_url) as (writing, key):
        await in_use(writing)
        # a second worker has answered a request and written it to its journal, and not yet to the ledger
        slow = Journal.open(old / "guard.journal", "worker-1")
        slow.opened("req_slow", {})
        slow.closed(row_of("req_slow", writing.account))
        before = {*writing.closed, "req_slow"}
        await bash(block("Back up"), old, BACKUP=str(backup))
        await bash(block("Back up", kind), old, BACKUP=str(backup), DATABASE=old_url)
        slow.close()
        assert len(writing.closed) > len(before), "nothing was written meanwhile: the test shows nothing"
    for secret in ("guard.secrets", "keys.json"):
        assert (backup / secret).stat().st_mode & 0o077 == 0
    shutil.rmtree(old)  # the machine is gone

    await bash(block("Restore"), new, BACKUP=str(backup))
    await bash(block("Restore", kind), new, BACKUP=str(backup), DATABASE=new_url)
    guard_yaml(new, new_url)
    config = load_config(new / "guard.yaml", GuardConfig)
    secrets = GuardSecrets.load(new / "guard.secrets")
    async with await Database.open(new_url, migrate=False) as db:
        verified = await verify_ledger(db, public_keys=[secrets.signer.public_key().public_bytes_raw().hex()])
        assert verified.ok, verified.problems
        assert verified.checkpoints
        accounts = await Accounts.open(db, secrets, config)
        identity = accounts.authenticate(key.encode())
        assert identity is not None and identity.name == "acme" and identity.slot
        assert load_keys(new / "keys.json").current

        # the first start: what the journal held is accounted for, what the ledger has already is not charged twice
        ledger = await Ledger.open(db, signer=secrets.signer, commit_ms=1)
        for orphan in recover(new / "guard.journal"):
            if orphan.row is not None:
                ledger.append(orphan.row)
            orphan.done()
        await ledger.flush()
        await ledger.aclose()
        rows = [row["request_id"] async for row in read_ledger(db)]
        assert len(rows) == len(set(rows))
        assert before <= set(rows), "requests that were answered before the backup are lost"
        assert (await verify_ledger(db)).ok
        (total,) = await db.fetch(
            "SELECT requests, pico FROM totals WHERE scope = $1 AND time_window = 'all'", f"account:{identity.account}"
        )
        assert total["requests"] == len(rows) and total["pico"] == 7_000_000 * len(rows)


async def test_the_page_s_last_words_before_serving_run(folders: tuple[Path, Path, Path]) -> None:
    """`ledger verify` and `serve --check` on a restored guard, as the page has them."""
    old, backup, new = folders
    url = f"sqlite:///{old / 'guard.db'}"
    async with serving(old, url) as (writing, _):
        await in_use(writing)
        await bash(block("Back up") + block("Back up", "SQLite"), old, BACKUP=str(backup))
    await bash(block("Restore") + block("Restore", "SQLite"), new, BACKUP=str(backup))
    guard_yaml(new, "sqlite:///guard.db")
    verify, check = block("Restore", "Then look").splitlines()
    await bash(verify, new)
    with pytest.raises(AssertionError, match="start that server"):  # the upstream of this guard.yaml does not exist
        await bash(check, new)


async def test_without_the_secrets_no_key_works(folders: tuple[Path, Path, Path]) -> None:
    """Why the page says what the file is worth."""
    old, backup, new = folders
    async with serving(old, f"sqlite:///{old / 'guard.db'}") as (writing, _):
        await in_use(writing)
        await bash(block("Back up") + block("Back up", "SQLite"), old, BACKUP=str(backup))
    await bash(block("Restore") + block("Restore", "SQLite"), new, BACKUP=str(backup))
    (new / "guard.secrets").unlink()
    guard_yaml(new, "sqlite:///guard.db")
    config = load_config(new / "guard.yaml", GuardConfig)
    async with await Database.open(f"sqlite:///{new / 'guard.db'}") as db:
        with pytest.raises(BadInput, match="secrets"):
            await Accounts.open(db, GuardSecrets.load(new / "guard.secrets"), config)


async def test_the_plain_file_alone_would_not_do(folders: tuple[Path, Path, Path]) -> None:
    """Why the page warns of copying guard.db: the newest rows stand in guard.db-wal."""
    old, backup, _ = folders
    async with serving(old, f"sqlite:///{old / 'guard.db'}") as (writing, _):
        await in_use(writing)
        await writing.ledger.flush()
        written = len(writing.closed) - writing.ledger.backlog
        shutil.copy(old / "guard.db", backup / "guard.db")
    async with await Database.open(f"sqlite:///{backup / 'guard.db'}") as db:
        (row,) = await db.fetch("SELECT count(*) AS n FROM ledger WHERE kind = 'reply'")
        assert row["n"] < written
