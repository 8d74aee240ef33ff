"""`spiritsafe evidence twins erase`: the texts of one account go, its commitments and everybody else's texts stay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_accounts_cli import CONFIG

from spiritsafe.config import load_config
from spiritsafe.ledger import Ledger, LedgerRow, read_ledger, verify_ledger
from spiritsafe.serve._account_store import AccountStore
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._twins import Twins, committed_twins, export_twins
from spiritsafe.state import Database


def erase(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spiritsafe", "evidence", "twins", "erase", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def reply(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text}]}


async def test_an_accounts_texts_go_and_its_commitments_stay(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "guard.yaml").write_text(CONFIG.format(url=database_url))
    guard = load_config(tmp_path / "guard.yaml", GuardConfig)
    async with await Database.open(database_url) as db:
        ledger, twins, store = await Ledger.open(db, commit_ms=1), Twins(db, guard), AccountStore(db, guard)
        ada, bob = (await store.add("Ada")).id, (await store.add("Bob")).id
        for number, account in enumerate((ada, bob, ada)):
            kept = await twins.choose(
                request_id=f"r{number}", account=account, model="small", request={"prompt": "private"},
                first=reply("left"), second=reply("right"),
            )  # fmt: skip
            assert kept is not None
            ledger.append(LedgerRow(number, f"r{number}", account, "k", "small", twin_commit=kept.twin_commit))
        await ledger.aclose()
        done = erase(tmp_path, "Ada", "--reason", "consent withdrawn", "--by", "ann", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"account": ada, "erased": 2}
        assert [pair["account"] async for pair in export_twins(db)] == [bob]
        assert await committed_twins(db, account=ada) == 2
        (event,) = [row async for row in read_ledger(db, kinds=("event",))]
        assert (event["name"], event["subject"]) == ("twins_erased", ada)
        assert event["data"] == {"pairs": 2, "reason": "consent withdrawn", "decided_by": "ann"}
        assert (await verify_ledger(db)).ok


@pytest.mark.parametrize(
    ("arguments", "said"), [(("Aga", "--reason", "x"), "did you mean Ada"), (("Ada",), "--reason")]
)
async def test_what_makes_no_sense_erases_nothing(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "guard.yaml").write_text(CONFIG.format(url="sqlite:///guard.db"))
    guard = load_config(tmp_path / "guard.yaml", GuardConfig)
    async with await Database.open(f"sqlite:///{tmp_path / 'guard.db'}") as db:
        await AccountStore(db, guard).add("Ada")
    done = erase(tmp_path, *arguments)
    assert done.returncode == 2 and said in done.stderr
