"""Export: the promised fields, whole or not at all, and a file that can be verified where no database is."""

from __future__ import annotations

import asyncio
import builtins
import json
import os
import stat
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger_kit import START, no_file_larger_than, row
from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.ledger import (
    Event,
    Ledger,
    LedgerRow,
    Verification,
    export_ledger,
    forget_personal,
    read_ledger,
    verify_ledger,
    write_checkpoint,
)
from spiritsafe.state import Database

SIGNER = Ed25519PrivateKey.from_private_bytes(b"e" * 32)
KEY = SIGNER.public_key().public_bytes_raw().hex()
PROMISED = [
    "ts", "request_id", "account", "key_id", "end_user", "model", "tokens_in", "tokens_out", "usd", "status",
    "latency_ms", "stream", "n", "temperature", "logprobs", "turns", "policy", "watermark_key_id", "account_slot",
    "twin_commit", "features", "skeleton", "sketch", "org", "ip_prefix", "asn", "user_agent", "payment_id", "prev_hash",
    "hash",
]  # fmt: skip
FULL = LedgerRow(
    START + 0.125, "req_full", "acct_1", "key_1", "gpt-ünïcode", 1, 2, 1_234_567_890_123, "client_gone", 3.25, True, 2,
    1, 5, 7, "logprobs off", "ks_1/2026-11/17", 17, "ab" * 32, {"z": [0.1, 1e-9, None], "a": {"b": True}}, "skel",
    "sketch", "acme", "user \"1\"\n", "2001:db8::/48", 64500, "agent/1.0", "pay_1",
)  # fmt: skip


async def fill(db: Database) -> None:
    ledger = await Ledger.open(db, signer=SIGNER, commit_ms=1)
    ledger.append(FULL)
    for n in range(2, 12):
        ledger.append(row(n) if n % 4 else Event(START + n, "suspended", f"account:acct_{n}", {"reason": "…"}))
    await ledger.flush()
    await write_checkpoint(db, SIGNER, START)
    ledger.append(row(12))
    await ledger.aclose()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all.jsonl, all.parquet and replies.jsonl of one ledger: 12 rows, two checkpoints."""
    folder = tmp_path_factory.mktemp("export")

    async def make() -> None:
        async with await Database.open(f"sqlite:///{folder / 'guard.db'}") as db:
            await fill(db)
            for name in ("all.jsonl", "all.parquet"):
                await export_ledger(db, folder / name, everything=True)
            await export_ledger(db, folder / "replies.jsonl")

    asyncio.run(make())
    return folder


def verify(path: Path, **options: Any) -> Verification:
    return asyncio.run(verify_ledger(path, **options))


def test_a_row_has_the_promised_fields_and_the_values_given(exported: Path) -> None:
    first = lines(exported / "replies.jsonl")[0]
    assert list(first)[: len(PROMISED)] == PROMISED
    assert set(first) - set(PROMISED) == {"seq", "kind", "pico", "commitments", "salt"}
    assert first["usd"] == 1.234567890123
    given_ = {name: first[name] for name in LedgerRow._fields}
    assert given_ == FULL._asdict()


@pytest.mark.parametrize("name", ["all.jsonl", "all.parquet"])
async def test_both_databases_survive_the_round_trip(database_url: str, tmp_path: Path, name: str) -> None:
    async with await Database.open(database_url) as db:
        await fill(db)
        out = tmp_path / name
        counts = await export_ledger(db, out, everything=True)
        assert counts == {"reply": 10, "event": 2, "checkpoint": 2}
        assert stat.S_IMODE(out.stat().st_mode) == 0o600
        of_file = await verify_ledger(out, public_keys=[KEY])
        of_database = await verify_ledger(db, public_keys=[KEY])
        assert of_file.ok and of_database.ok, (of_file.problems, of_database.problems)
        assert (of_file.head, of_file.personal_checked) == (of_database.head, of_database.personal_checked)
        assert (of_file.totals, of_database.totals) == ("absent", "match")


def test_parquet_has_typed_columns(exported: Path) -> None:
    table = pq.read_table(exported / "all.parquet")
    first = table.to_pylist()[0]
    assert (first["ts"], first["pico"], first["stream"], first["temperature"]) == (START + 0.125, FULL.pico, True, 1.0)
    assert json.loads(first["features"]) == FULL.features
    assert str(table.schema.field("tokens_out").type) == "int64"


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet"])
async def test_personal_fields_can_be_left_out(database_url: str, tmp_path: Path, name: str) -> None:
    async with await Database.open(database_url) as db:
        await fill(db)
        out = tmp_path / name
        await export_ledger(db, out, everything=True, personal=False)
        found = await verify_ledger(out)
        assert found.ok and found.personal_checked == 0 and found.personal_gone == 23
        for value in ("user-3", "2001:db8::", "agent/1.0", "pay_1"):
            assert value.encode() not in out.read_bytes()
        await forget_personal(db, before=START + 5)
        await export_ledger(db, out, everything=True)
        found = await verify_ledger(out)
        assert found.ok and found.personal_checked == 14 and found.personal_gone == 9


async def test_a_span_of_time_and_a_place_to_go_on_from(database_url: str, tmp_path: Path) -> None:
    async with await Database.open(database_url) as db:
        await fill(db)
        out = tmp_path / "some.jsonl"
        assert await export_ledger(db, out, since=START + 3, until=START + 7) == {"reply": 3}
        assert [line["request_id"] for line in lines(out)] == ["req_000003", "req_000005", "req_000006"]
        assert not (await verify_ledger(out)).ok  # something is missing, whoever left it out
        partial = await verify_ledger(out, partial=True)
        assert partial.ok and "nothing is missing was not checked" in " ".join(partial.notes)
        assert await export_ledger(db, out, since=START + 100) == {"reply": 0}
        assert lines(out) == []
        both = [line["seq"] async for line in read_ledger(db, kinds=("reply", "event"), page=5)]
        assert both == list(range(1, 13))
        assert [line["seq"] async for line in read_ledger(db, after=9, page=2)] == [10, 11, 12]
        assert [line["data"] async for line in read_ledger(db, START, ("event",))] == [{"reason": "…"}] * 2


def test_an_export_of_replies_alone_is_not_called_complete(exported: Path) -> None:
    found = verify(exported / "replies.jsonl")
    assert not found.ok and found.problems[0] == "row 4: missing"
    assert verify(exported / "replies.jsonl", partial=True).ok


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"usd": 0.0}, "row 1: usd is 0.0, but pico says 1.234567890123"),
        ({"end_user": "somebody"}, "row 1: end_user is not what the chain commits to"),
        ({"end_user": None}, "row 1: end_user was taken out, yet the salt is there"),
        ({"salt": None}, "cannot be checked: the salt is missing"),
        ({"salt": "zz"}, "row 1: its content is not that of a ledger row"),
        ({"commitments": 5}, "line 1: not a ledger row (a value is of the wrong kind)"),
        ({"note": "hello"}, "row 1: note: not a field of the ledger, nothing vouches for it"),
        ({"kind": "thing"}, "line 1: not a ledger row"),
        ({"seq": "x"}, "line 1: not a ledger row"),
        ({"tokens_out": "many"}, "row 1: changed or moved"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(exported: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    first, *rest = (exported / "all.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "changed.jsonl"
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]) + "\n", encoding="utf-8")
    found = verify(path)
    assert not found.ok and said in "\n".join(found.problems)


def test_a_torn_or_foreign_file_is_said_to_be_one(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_bytes((exported / "all.jsonl").read_bytes()[:-40])
    assert "not a JSON object; the file was cut off or damaged" in verify(path).problems[0]
    path.write_text('{"hello": 1}\n[]\n\n')
    assert [p.split(": ", 1)[1] for p in verify(path).problems] == [
        "not a ledger row (kind is missing)",
        "not a JSON object; the file was cut off or damaged",
    ]
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(BadInput, match="not a readable Parquet file"):
        verify(tmp_path / "no.parquet")
    with pytest.raises(BadInput, match="give an exported ledger"):
        verify(tmp_path / "nowhere.jsonl")


@st.composite
def one_change(draw: st.DrawFn) -> Any:
    at = draw(st.integers(0, 13))
    what = draw(st.sampled_from(["delete", "swap", "repeat", "edit"]))
    if what == "edit":
        return what, at, draw(st.integers(0, 10**6))
    return what, at, draw(st.integers(0, 13).filter(lambda n: n != at))


@given(change=one_change())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_single_change_of_lines_is_found(exported: Path, tmp_path: Path, change: tuple[str, int, int]) -> None:
    """The last row is signed, so that cutting it off is found as well; what is not found is a checkpoint left out."""
    what, at, other = change
    text = (exported / "all.jsonl").read_text(encoding="utf-8").splitlines()
    before = list(text)
    if what == "delete":
        del text[at]
    elif what == "swap":
        text[at], text[other] = text[other], text[at]
    elif what == "repeat":
        text.insert(other, text[at])
    else:
        values = json.loads(text[at])
        name = sorted(values)[other % len(values)]
        values[name] = _other(values[name])
        text[at] = json.dumps(values)
    path = tmp_path / "changed.jsonl"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    found = verify(path)
    harmless = what == "delete" or (what == "repeat" and other == at + 1)
    if json.loads(before[at])["kind"] == "checkpoint" and harmless:
        assert found.ok and found.checkpoints == (1 if what == "delete" else 3)
    else:
        assert not found.ok, (what, at, other)


def _other(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    if isinstance(value, int | float):
        return value + 1
    return [value]


async def test_a_failed_export_leaves_nothing(database_url: str, tmp_path: Path) -> None:
    async with await Database.open(database_url) as db:
        await fill(db)
        out = tmp_path / "out"
        out.mkdir()
        (out / "all.jsonl").write_text("the old one")
        with no_file_larger_than(1000), pytest.raises(BadInput, match="choose another --out"):
            await export_ledger(db, out / "all.jsonl")
        assert os.listdir(out) == ["all.jsonl"]
        assert (out / "all.jsonl").read_text() == "the old one"
        for bad in (out / "ledger.csv", tmp_path / "nowhere" / "all.jsonl"):
            with pytest.raises(BadInput):
                await export_ledger(db, bad)


async def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    async with await Database.open(f"sqlite:///{tmp_path / 'guard.db'}") as db:
        with pytest.raises(SpiritsafeError, match="pip install pyarrow"):
            await export_ledger(db, tmp_path / "out.parquet")
        with pytest.raises(SpiritsafeError, match="pip install pyarrow"):
            await verify_ledger(tmp_path / "out.parquet")
        assert await export_ledger(db, tmp_path / "out.jsonl") == {"reply": 0}


async def test_a_damaged_row_stops_an_export(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite:///{tmp_path / 'guard.db'}") as db:
        await fill(db)
        await db.execute("UPDATE ledger SET payload = '[' WHERE seq = 3")
        with pytest.raises(BadInput, match="ledger row 3: damaged"):
            await export_ledger(db, tmp_path / "out.jsonl")
        assert not (tmp_path / "out.jsonl").exists()
