"""Verification: any single change is found, and said in words that name the row."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger_kit import START, row
from spiritsafe.ledger import Event, Ledger, Verification, verify_ledger, write_checkpoint
from spiritsafe.ledger._chain import chain_hash
from spiritsafe.ledger._sums import Sums
from spiritsafe.ledger._totals import Counted
from spiritsafe.state import Database

SIGNER = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
KEY = SIGNER.public_key().public_bytes_raw().hex()
ROWS = 12


async def fill(db: Database, rows: int = ROWS) -> None:
    ledger = await Ledger.open(db, signer=SIGNER, commit_ms=1)
    for n in range(1, rows + 1):
        ledger.append(row(n) if n % 4 else Event(START + n, "ladder_step", f"account:acct_{n}", {"n": n}))
        if n == rows // 2:
            await ledger.flush()
            await write_checkpoint(db, SIGNER, START + n)
    await ledger.aclose()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole SQLite ledger of twelve rows, checkpoints over rows 6 and 12."""
    path = tmp_path_factory.mktemp("verify") / "guard.db"

    async def make() -> None:
        async with await Database.open(f"sqlite:///{path}") as db:
            await fill(db)
            await db.execute("SELECT 1")

    asyncio.run(make())
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


def tampered(original: bytes, folder: Path, *statements: str) -> Verification:
    path = folder / "guard.db"
    for old in folder.glob("guard.db*"):
        old.unlink()
    path.write_bytes(original)
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()

    async def verify() -> Verification:
        async with await Database.open(f"sqlite:///{path}", migrate=False) as db:
            return await verify_ledger(db)

    return asyncio.run(verify())


def test_a_ledger_left_alone_is_whole(original: bytes, tmp_path: Path) -> None:
    found = tampered(original, tmp_path)
    assert found.ok and found.problems == () and found.first_bad is None
    assert (found.rows, found.replies, found.events, found.first, found.head[0]) == (12, 9, 3, 1, 12)
    assert (found.checkpoints, found.last_checkpoint, found.signer, found.signers) == (2, 12, "unanchored", (KEY,))
    assert (found.personal_checked, found.personal_gone, found.totals) == (18, 0, "match")


@pytest.mark.parametrize(
    ("statement", "bad", "said"),
    [
        ("UPDATE ledger SET payload = replace(payload, '\"tokens_out\":9', '\"tokens_out\":1') WHERE seq = 3", 3, "row 3: changed or moved"),
        ("UPDATE ledger SET hash = replace(hash, substr(hash, 1, 1), 'x') WHERE seq = 12", 12, "row 12: changed or moved"),
        ("DELETE FROM ledger WHERE seq = 5", 5, "row 5: missing"),
        ("DELETE FROM ledger WHERE seq BETWEEN 7 AND 9", 7, "row 7: missing, and all after it to row 9"),
        ("DELETE FROM ledger WHERE seq = 1", 1, "row 1: missing"),
        ("DELETE FROM ledger WHERE seq > 10", 11, "row 12: a checkpoint was signed over it, but the chain ends with row 10"),
        ("DELETE FROM ledger WHERE seq = 6", 6, "row 6: missing, although a checkpoint was signed over it"),
        ("UPDATE ledger SET kind = 'event' WHERE seq = 2", 2, "row 2: changed or moved"),
        ("UPDATE ledger SET ts = ts - 86400 WHERE seq = 2", 2, "row 2: ts beside the chain"),
        ("UPDATE ledger SET account = 'acct_x' WHERE seq = 2", 2, "row 2: account beside the chain is 'acct_x'"),
        ("UPDATE ledger SET request_id = 'other' WHERE seq = 4", 4, "row 4: id beside the chain is 'other'"),
        ("UPDATE ledger SET payload = 'gibberish' WHERE seq = 8", 8, "row 8: its content is not that of a ledger row"),
        ("UPDATE personal SET fields = replace(fields, 'user-3', 'user-4') WHERE seq = 3", 3, "row 3: end_user is not what the chain commits to"),
        ("UPDATE personal SET fields = '{\"ip_prefix\":\"203.0.113.0/24\"}' WHERE seq = 3", 3, "row 3: end_user was taken out, yet the salt is there"),
        ("UPDATE personal SET fields = '[' WHERE seq = 3", 3, "row 3: its personal fields cannot be read"),
        ("UPDATE personal SET salt = 'zz' WHERE seq = 3", 3, "row 3"),
        ("INSERT INTO personal VALUES (99, 1, 'a', '00', '{}')", 99, "row 99: personal fields are kept for it"),
        ("UPDATE checkpoints SET signature = replace(signature, substr(signature, 9, 1), 'f') WHERE seq = 6", 6, "row 6: the checkpoint over it has a bad signature"),
        ("UPDATE checkpoints SET at = at + 1 WHERE seq = 6", 6, "bad signature"),
        ("UPDATE checkpoints SET seq = 7 WHERE seq = 6", 7, "bad signature"),
        ("UPDATE checkpoints SET public_key = 'nonsense' WHERE seq = 6", 6, "bad signature"),
        ("UPDATE totals SET pico = pico + 1 WHERE scope = 'account:acct_1' AND time_window = 'all'", None, "total of account:acct_1, all: says"),
        ("DELETE FROM totals WHERE scope = 'org:acme' AND time_window = '2025-11'", None, "total of org:acme, 2025-11: is missing"),
        ("INSERT INTO totals VALUES ('account:nobody', 'all', 1, 1, 1, 1)", None, "total of account:nobody, all: says"),
        ("INSERT INTO ledger SELECT -1, kind, ts, 'new', account, payload, prev_hash, hash FROM ledger WHERE seq = 1", -1, "row -1: comes after row 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(original: bytes, tmp_path: Path, statement: str, bad: int | None, said: str) -> None:
    found = tampered(original, tmp_path, statement)
    assert not found.ok
    assert said in "\n".join(found.problems)
    assert found.first_bad == bad
    assert found.to_dict()["ok"] is False and "NOT whole" in found.render()


columns = st.sampled_from(["kind", "ts", "request_id", "account", "payload", "prev_hash", "hash"])


@st.composite
def one_change(draw: st.DrawFn) -> list[str]:
    """SQL that edits, deletes, swaps or inserts one row. Row 12 alone cannot be cut off silently: it is signed."""
    seq = draw(st.integers(1, ROWS))
    what = draw(st.sampled_from(["edit", "delete", "swap", "insert", "copy"]))
    if what == "edit":
        column = draw(columns)
        if column == "ts":
            return [f"UPDATE ledger SET ts = ts + {draw(st.sampled_from([1e-6, -1.0, 1e6]))} WHERE seq = {seq}"]
        at = draw(st.integers(1, 60))
        put = draw(st.sampled_from("0a ~"))
        return [
            f"UPDATE ledger SET {column} = substr({column}, 1, {at - 1} % length({column})) || '{put}' || "
            f"substr({column}, 2 + ({at - 1} % length({column}))) WHERE seq = {seq}"
        ]
    if what == "delete":
        return [f"DELETE FROM ledger WHERE seq = {seq}"]
    other = draw(st.integers(1, ROWS).filter(lambda n: n != seq))
    if what == "swap":  # the rows change places; with `contents`, only what they say does
        if draw(st.booleans()):
            return [
                f"UPDATE ledger SET seq = 1000 WHERE seq = {seq}",
                f"UPDATE ledger SET seq = {seq} WHERE seq = {other}",
                f"UPDATE ledger SET seq = {other} WHERE seq = 1000",
            ]
        return [
            f"UPDATE ledger SET payload = (SELECT o.payload FROM ledger o WHERE o.seq = {seq + other} - ledger.seq) "
            f"WHERE seq IN ({seq}, {other})"
        ]
    if what == "copy":  # a row again, at the end
        return [
            f"INSERT INTO ledger SELECT {ROWS + 1}, kind, ts, 'again', account, payload, prev_hash, hash FROM ledger "
            f"WHERE seq = {seq}"
        ]
    return [  # make room, and put a copy there
        f"UPDATE ledger SET seq = -seq WHERE seq >= {seq}",
        "UPDATE ledger SET seq = 1 - seq WHERE seq < 0",
        f"INSERT INTO ledger SELECT {seq}, kind, ts, 'new', account, payload, prev_hash, hash FROM ledger "
        f"WHERE seq = {other + 1 if other >= seq else other}",
    ]


@given(statements=one_change())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_single_change_of_rows_is_found(original: bytes, tmp_path: Path, statements: list[str]) -> None:
    path = tmp_path / "same.db"
    path.write_bytes(original)
    with sqlite3.connect(path) as connection:
        before = connection.execute("SELECT * FROM ledger ORDER BY seq").fetchall()
        for statement in statements:
            connection.execute(statement)
        changed = connection.execute("SELECT * FROM ledger ORDER BY seq").fetchall() != before
        connection.rollback()
    connection.close()
    found = tampered(original, tmp_path, *statements)
    assert found.ok != changed, statements


@pytest.mark.parametrize("seq", range(1, ROWS + 1))
async def test_a_row_hashed_anew_does_not_fit_the_next(original: bytes, tmp_path: Path, seq: int) -> None:
    """Anyone can compute a hash; the row after it, or the checkpoint over the last one, still holds the old."""
    path = tmp_path / "guard.db"
    path.write_bytes(original)
    async with await Database.open(f"sqlite:///{path}", migrate=False) as db:
        (old,) = await db.fetch("SELECT * FROM ledger WHERE seq = $1", seq)
        payload = old["payload"].replace('"ts":17', '"ts":16')
        forged = chain_hash(seq, old["kind"], old["prev_hash"], payload.encode())
        await db.execute(
            "UPDATE ledger SET payload = $1, hash = $2, ts = ts - 1e8 WHERE seq = $3", payload, forged, seq
        )
        found = await verify_ledger(db)
    assert found.problems[0] == (
        f"row {seq + 1}: does not follow row {seq}: it was written after another one"
        if seq not in (6, ROWS)
        else f"row {seq}: is not the row that the checkpoint over it was signed for: the chain was rewritten"
    )


async def test_postgres_is_read_the_same_way(postgres_url: str) -> None:
    async with await Database.open(postgres_url) as db:
        await fill(db)
        found = await verify_ledger(db, public_keys=[KEY.upper()])
        assert (found.ok, found.rows, found.totals, found.signer) == (True, 12, "match", "anchored")
        await db.execute("UPDATE ledger SET payload = replace(payload, '\"n\":1', '\"n\":2') WHERE seq = 7")
        await db.execute("UPDATE totals SET requests = requests + 1 WHERE scope = 'org:acme' AND time_window = 'all'")
        found = await verify_ledger(db)
        assert (found.ok, found.first_bad, found.totals) == (False, 7, "differ")


async def test_a_guard_may_write_meanwhile(database_url: str) -> None:
    async with await Database.open(database_url) as db, await Database.open(database_url) as other:
        ledger = await Ledger.open(other, signer=SIGNER, commit_ms=1, checkpoint_every_s=0.02)
        stop = False

        async def write() -> None:
            n = 0
            while not stop:
                n += 1
                await ledger.append(row(n))

        writing = asyncio.create_task(write())
        seen = set()
        while len(seen) < 10:
            found = await verify_ledger(db)
            assert found.ok, found.problems
            seen.add(found.rows)
        stop = True
        await writing
        await ledger.aclose()


async def test_a_rewritten_chain_needs_the_key(tmp_path: Path) -> None:
    """Whoever can write to the database can make a chain that looks whole: only signer or memory tell."""
    async with (
        await Database.open(f"sqlite:///{tmp_path / 'true.db'}") as true,
        await Database.open(f"sqlite:///{tmp_path / 'forged.db'}") as forged,
    ):
        await fill(true)
        ledger = await Ledger.open(forged, signer=Ed25519PrivateKey.generate(), commit_ms=1)
        for n in range(1, 13):
            ledger.append(row(n, pico=1))
        await ledger.aclose()
        head = (await verify_ledger(true)).head
        assert (await verify_ledger(forged)).ok  # says: signer unanchored
        assert "unanchored" in " ".join((await verify_ledger(forged)).notes)
        assert "signed by another key" in (await verify_ledger(forged, public_keys=[KEY])).problems[0]
        assert "not the expected" in (await verify_ledger(forged, expect=[head])).problems[0]
        await forged.execute("DELETE FROM checkpoints")
        assert "no checkpoint of the given key" in (await verify_ledger(forged, public_keys=[KEY])).problems[0]


async def test_a_cut_tail_is_seen_by_whoever_remembers_it(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite:///{tmp_path / 'guard.db'}") as db:
        ledger = await Ledger.open(db, commit_ms=1)
        for n in range(5):
            ledger.append(row(n))
        await ledger.aclose()
        whole = await verify_ledger(db)
        assert (await verify_ledger(db, expect=[whole.head])).ok
        for table in ("ledger", "personal"):
            await db.execute(f"DELETE FROM {table} WHERE seq = 5")
        await db.execute("DELETE FROM totals")
        cut = await verify_ledger(db, expect=[whole.head])
        assert cut.first_bad == 5 and "row 5: expected with hash" in "\n".join(cut.problems)
        assert any("a chain cut short looks whole" in note for note in whole.notes)


async def test_an_empty_ledger_is_whole(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        found = await verify_ledger(db, public_keys=[KEY])
        assert (found.ok, found.rows, found.head) == (True, 0, (0, "0" * 64))
        assert await write_checkpoint(db, SIGNER, START) is None


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 2**62)), max_size=60), st.integers(1, 40)
)
def test_sums_are_the_same_in_memory_and_spilt(rows: list[tuple[int, int, int]], most: int) -> None:
    with Sums() as held, Sums(most) as spilt:
        for account, day, pico in rows:
            counted = (Counted(f"a{account}", "k", None, "m", f"2026-01-0{day + 1}"), (1, 2, 3, pico % 2**50))
            held.add([counted])
            spilt.add([counted])
        keys = {(f"account:a{a}", w) for a, d, _ in rows for w in (f"2026-01-0{d + 1}", "2026-01", "all")}
        for key in sorted(keys):
            assert held.take(key) == spilt.take(key) is not None
            assert held.take(key) is None and spilt.take(key) is None
        assert bool(held.left()) == bool(spilt.left()) == bool(rows)
