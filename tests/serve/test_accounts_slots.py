"""Watermark slots: one account a slot whatever runs at once, and the ledger has it before anyone may mark with it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

import accounts_kit as kit
from spiritsafe.errors import Refused
from spiritsafe.keys import HOUSE_SLOT, SLOTS, load_keys, new_keys
from spiritsafe.ledger import Ledger
from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._key_store import KeyStore
from spiritsafe.state import Database, Unavailable

PROCESS = """
import asyncio, json, sys
from pathlib import Path
import accounts_kit as kit
from spiritsafe.ledger import Ledger
from spiritsafe.serve._accounts import Accounts
from spiritsafe.state import Database

async def main(url, folder, names):
    async with await Database.open(url) as db:
        ledger = await Ledger.open(db, commit_ms=5)
        try:
            await bind(db, ledger, folder, names)
        finally:
            await ledger.aclose()

async def bind(db, ledger, folder, names):
    accounts = await Accounts.open(db, kit.secrets(Path(folder)), kit.config(), ledger)
    print("up", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    ids = [(await accounts.show(name)).id for name in names]
    slots = await asyncio.gather(*map(accounts.bind_slot, ids))
    for slot, account in zip(slots, ids):
        rows = await db.fetch("SELECT COUNT(*) AS n FROM ledger WHERE kind = 'event' AND payload LIKE $1", f"%{account}%")
        assert rows[0]["n"] >= 1, "returned before the ledger had it"
        assert accounts.identity(account).slot == slot
    print(json.dumps(dict(zip(names, slots))))

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
"""


async def events_of(db: Database) -> list[dict[str, object]]:
    rows = await db.fetch("SELECT payload FROM ledger WHERE kind = 'event' ORDER BY seq")
    return [json.loads(row["payload"]) for row in rows]


async def test_processes_that_bind_at_once_share_no_slot(database_url: str, tmp_path: Path) -> None:
    async with await Database.open(database_url) as db:
        store = KeyStore(db, kit.secrets(tmp_path), kit.config())
        for number in range(24):
            await store.add(f"a{number}")
        here = str(Path(__file__).parent)
        # neighbours bind the same accounts, too
        wanted = [[f"a{number % 24}" for number in range(6 * process, 6 * process + 12)] for process in range(4)]
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROCESS, database_url, str(tmp_path), *names, cwd=here, stdin=-1, stdout=-1
            )
            for names in wanted
        ]
        for process in processes:
            assert process.stdout is not None and await process.stdout.readline() == b"up\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            await process.stdin.drain()
        said = [json.loads((await process.communicate())[0]) for process in processes]
        assert [process.returncode for process in processes] == [0] * 4
        together: dict[str, int] = {}
        for slots in said:
            for name, slot in slots.items():
                assert together.setdefault(name, slot) == slot, "two processes bound an account differently"
        assert sorted(together.values()) == list(range(1, 25)), "each slot once, none skipped, none the house's"
        stated: dict[object, set[object]] = {}
        for event in await events_of(db):
            stated.setdefault(event["subject"], set()).add(event["data"]["slot"])  # type: ignore[index]
        assert {(await store.show(name)).id: {slot} for name, slot in together.items()} == stated


async def test_the_event_names_key_set_and_epoch(database_url: str, tmp_path: Path) -> None:
    new_keys(tmp_path / "keys.json", marking={"scheme": "gumbel-dual"}, epoch="2026-11")
    keys = load_keys(tmp_path / "keys.json")
    async with await Database.open(database_url) as db:
        ledger = await Ledger.open(db, commit_ms=1)
        accounts = await Accounts.open(db, kit.secrets(tmp_path), kit.config(), ledger, keys=keys)
        made = await accounts.add("a")
        assert await accounts.bind_slot(made.id) == await accounts.bind_slot(made.id) == 1
        events = await events_of(db)
        assert [event["name"] for event in events] == ["slot_bound"]
        assert events[0]["subject"] == made.id
        assert events[0]["data"] == {"slot": 1, "key_set": keys.id, "epoch": "2026-11"}
        who = accounts.identity(made.id)
        assert who is not None and who.slot == 1 != HOUSE_SLOT
        assert str(keys.key_id(keys.current, who.slot)) == f"{keys.id}/2026-11/1"
        await ledger.aclose()


async def test_a_slot_counts_only_once_the_ledger_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spiritsafe.serve._account_store._LEDGER_S", 0.05)
    async with await Database.open(f"sqlite:///{tmp_path / 'g.db'}") as db:
        events = kit.Events(stuck=True)
        accounts = await Accounts.open(db, kit.secrets(tmp_path), kit.config(), events)
        made = await accounts.add("a")
        with pytest.raises(Unavailable):
            await accounts.bind_slot(made.id)
        await accounts.refresh()
        who = accounts.identity(made.id)
        assert who is not None and who.slot is None
        events.stuck = False
        assert await accounts.bind_slot(made.id) == 1, "the slot set aside is taken up again, none is lost"
        assert [event.data["slot"] for event in events.entries] == [1]


async def test_one_waiting_client_that_leaves_fails_no_other(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite:///{tmp_path / 'g.db'}") as db:
        accounts = await Accounts.open(db, kit.secrets(tmp_path), kit.config(), kit.Events())
        made = await accounts.add("a")
        waiting = [asyncio.create_task(accounts.bind_slot(made.id)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError) and done[1:] == [1, 1]


async def test_when_all_slots_are_taken_it_says_so(database_url: str, tmp_path: Path) -> None:
    async with await Database.open(database_url) as db:
        accounts = await Accounts.open(db, kit.secrets(tmp_path), kit.config(), kit.Events())
        last, late = await accounts.add("last"), await accounts.add("late")
        await db.execute("INSERT INTO counters (name, value) VALUES ('slots', $1)", SLOTS - 2)
        assert await accounts.bind_slot(last.id) == SLOTS - 1
        with pytest.raises(Refused, match="all 1048575 watermark slots are taken"):
            await accounts.bind_slot(late.id)
        assert (await db.fetch("SELECT value FROM counters WHERE name = 'slots'"))[0]["value"] == SLOTS - 1
