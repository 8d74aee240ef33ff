"""`ledger verify|export|checkpoint`: exit codes, one JSON object, lines that say what to do."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ledger_kit import START, row
from spiritsafe.cli import main
from spiritsafe.ledger import Event, Ledger
from spiritsafe.serve._secrets import GuardSecrets
from spiritsafe.state import Database


async def _fill(folder: Path) -> None:
    async with await Database.open(f"sqlite:///{folder / 'guard.db'}") as db:
        signer = GuardSecrets.load(folder / "guard.secrets").signer
        ledger = await Ledger.open(db, signer=signer, commit_ms=1)
        for n in range(1, 9):
            ledger.append(row(n) if n != 5 else Event(START, "suspended", "account:acct_1", {"reason": "bulk"}))
        ledger.append(row(9, ts=time.time() - 60))
        await ledger.aclose()


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a guard's config, secrets and a ledger of nine rows; the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guard.yaml").write_text(
        "upstreams: [{name: local, base_url: 'http://127.0.0.1:9/v1', models: [m],"
        " price: {input_per_mtok: 1, output_per_mtok: 1}}]\n"
    )
    asyncio.run(_fill(tmp_path))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["ledger", *map(str, arguments)])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def test_verify_prints_one_object_and_exits_0(capsys: pytest.CaptureFixture[str], guard: Path) -> None:
    code, out, _ = run(capsys, "verify", "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] and (found["rows"], found["events"], found["head"]["seq"]) == (9, 1, 9)
    assert found["checkpoints"]["signer"] == "unanchored" and found["totals"] == "match"
    code, out, _ = run(capsys, "verify")
    assert code == 0 and out.splitlines()[-1] == "the chain is whole" and "9 rows (8 replies, 1 events)" in out


def test_verify_exits_1_and_names_the_row(capsys: pytest.CaptureFixture[str], guard: Path) -> None:
    with sqlite3.connect(guard / "guard.db") as connection:
        connection.execute("UPDATE ledger SET payload = replace(payload, '\"n\":1', '\"n\":9') WHERE seq = 4")
    connection.close()
    code, out, _ = run(capsys, "verify", "--json")
    assert code == 1 and json.loads(out)["first_bad"] == 4
    code, out, _ = run(capsys, "verify")
    assert code == 1 and "BAD: row 4: changed or moved: its hash is not that of its content" in out


def test_a_checkpoint_printed_is_a_checkpoint_to_verify_with(capsys: pytest.CaptureFixture[str], guard: Path) -> None:
    code, line, _ = run(capsys, "checkpoint")
    assert code == 0
    code, out, _ = run(capsys, "verify", *line.split(), "--json")
    assert code == 0 and json.loads(out)["checkpoints"]["signer"] == "anchored"
    code, out, _ = run(capsys, "checkpoint", "--json")
    signed = json.loads(out)
    assert code == 0 and signed["seq"] == 9 and len(signed["signature"]) == 128
    with sqlite3.connect(guard / "guard.db") as connection:
        for table in ("ledger", "personal", "checkpoints"):
            connection.execute(f"DELETE FROM {table} WHERE seq = 9")
    connection.close()
    code, out, _ = run(capsys, "verify", *line.split())
    assert code == 1 and "row 9: expected with hash" in out


def test_public_keys_come_as_hex_or_file(capsys: pytest.CaptureFixture[str], guard: Path) -> None:
    own = GuardSecrets.load(guard / "guard.secrets").signer.public_key()
    (guard / "hex.pub").write_text(own.public_bytes_raw().hex() + "\n")
    (guard / "pem.pub").write_bytes(own.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for given in (own.public_bytes_raw().hex().upper(), "hex.pub", "pem.pub"):
        assert run(capsys, "verify", "--public-key", given)[0] == 0
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    code, out, _ = run(capsys, "verify", "--public-key", other)
    assert code == 1 and "signed by another key" in out
    assert run(capsys, "verify", "--public-key", other, "--public-key", "pem.pub")[0] == 0


def test_an_export_can_be_verified_where_there_is_no_guard(
    capsys: pytest.CaptureFixture[str], guard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, "export", "--out", "all.jsonl", "--all", "--json")
    assert code == 0
    assert json.loads(out) == {"out": "all.jsonl", "counts": {"reply": 8, "event": 1, "checkpoint": 1}}
    assert run(capsys, "export", "--out", "all.parquet", "--all", "--no-personal")[0] == 0
    code, out, _ = run(capsys, "export")
    assert code == 0 and out == "ledger.jsonl: 8 replies\n"
    elsewhere = guard / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert run(capsys, "verify", guard / "all.jsonl")[0] == 0
    assert run(capsys, "verify", guard / "all.parquet")[0] == 0
    code, out, _ = run(capsys, "verify", guard / "ledger.jsonl")
    assert code == 1 and "row 5: missing" in out
    assert run(capsys, "verify", guard / "ledger.jsonl", "--partial")[0] == 0


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (["--since", "2025-11-24"], 8),
        (["--since", "2025-11-25"], 1),
        (["--until", "2025-11-24T16:00:03Z"], 2),
        (["--since", str(START + 7)], 3),
        (["--since", "2h"], 1),
        (["--since", "10s"], 0),
    ],
)
def test_times_are_understood(capsys: pytest.CaptureFixture[str], guard: Path, options: list[str], rows: int) -> None:
    code, out, _ = run(capsys, "export", *options, "--json")
    assert code == 0 and json.loads(out)["counts"]["reply"] == rows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "--expect", "9"], "write SEQ:HASH"),
        (["verify", "--public-key", "abc"], "64 hex digits"),
        (["verify", "--public-key", "guard.yaml"], "64 hex digits"),
        (["verify", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["verify", "nowhere.jsonl"], "nowhere.jsonl"),
        (["verify", "--set", "state.database=sqlite:///none.db"], "there is no database"),
        (["verify", "--set", "state.databse=x"], "did you mean database?"),
        (["export", "--since", "yesterday"], "not a time"),
        (["export", "--out", "ledger.csv"], ".jsonl or .parquet"),
        (["export", "--out", "none/ledger.jsonl"], "there is no folder"),
        (["checkpoint", "--set", "state.secrets=none"], "secrets are not there"),
    ],
)
def test_bad_usage_exits_2(capsys: pytest.CaptureFixture[str], guard: Path, arguments: list[str], said: str) -> None:
    before = sorted(path.name for path in guard.iterdir())
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
    assert sorted(path.name for path in guard.iterdir()) == before


def test_nothing_to_sign_yet(capsys: pytest.CaptureFixture[str], guard: Path) -> None:
    with sqlite3.connect(guard / "guard.db") as connection:
        connection.execute("DELETE FROM ledger")
    connection.close()
    code, _, err = run(capsys, "checkpoint")
    assert code == 2 and "nothing to sign yet" in err
