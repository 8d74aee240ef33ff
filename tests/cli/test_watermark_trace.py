"""`watermark trace` on files: right names, one JSON object, errors that say what to do."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marked import write
from spiritsafe.cli import main
from spiritsafe.keys import load_keys, new_keys
from train_kit import tiny_tokenizer

EPOCH = "2026-11"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys, accounts 1 … 50 and a marked document of account 17 in each format."""
    folder = tmp_path_factory.mktemp("desk")
    keys = new_keys(folder / "keys.json", marking={}, epoch=EPOCH)
    (folder / "accounts.txt").write_text("\n".join(f"acct_{slot}" for slot in range(1, 51)))
    ids = write(keys, EPOCH, 17, 400, seed=1).tolist()
    rows = [
        {"id": "leak", "tokens": ids},
        {"id": "late", "tokens": ids[-4:], "prompt_tokens": ids[:-4]},
        {"tokens": list(range(400))},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = [{"tokens": write(keys, EPOCH, 17, 40, seed=seed).tolist()} for seed in range(20)]
    (folder / "parts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in parts))
    pq.write_table(pa.table({"id": ["leak"], "tokens": [ids]}), folder / "rows.parquet")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["watermark", "trace", *map(str, arguments)])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def given(desk: Path) -> list[object]:
    return ["--keys", desk / "keys.json", "--accounts", desk / "accounts.txt"]


def traced(capsys: pytest.CaptureFixture[str], desk: Path, *arguments: object) -> dict[str, Any]:
    code, out, err = run(capsys, *arguments, *given(desk), "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_json_is_one_object_with_a_row_a_document(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    found = traced(capsys, desk, desk / "rows.jsonl")
    assert (found["scheme"], found["accounts"]) == ("gumbel-dual", 50)
    leak, late, human = found["documents"]
    assert [row["id"] for row in found["documents"]] == ["leak", "late", f"{desk}/rows.jsonl:3"]
    (named,) = leak["candidates"]
    assert (named["account"], named["slot"]) == ("acct_17", 17)
    assert named["log10_p_family"] == pytest.approx(named["log10_p"] + np.log10(50))
    assert (leak["epoch"], leak["epochs_tried"], leak["accounts"], leak["n_tokens"]) == (EPOCH, 1, 50, 400)
    assert late["n_tokens"] == 4
    assert (human["candidates"], human["passed"]) == ([], False)


def test_parquet_and_stdin_read_the_same(
    capsys: pytest.CaptureFixture[str], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = traced(capsys, desk, desk / "rows.jsonl")["documents"][0]
    assert traced(capsys, desk, desk / "rows.parquet")["documents"] == [wanted]
    line = (desk / "rows.jsonl").read_bytes().splitlines()[0]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line)))
    assert traced(capsys, desk, "-")["documents"] == [wanted]


def test_a_pool_is_one_row(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    found = traced(capsys, desk, desk / "parts.jsonl", "--pool")
    assert found["documents"] == []
    assert [c["account"] for c in found["pooled"]["candidates"]] == ["acct_17"]
    assert found["pooled"]["n_tokens"] == 800


def test_people_read_who_and_how_sure(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    code, out, _ = run(capsys, desk / "rows.jsonl", *given(desk))
    assert code == 0
    assert "leak: marked (epoch 2026-11" in out
    assert "acct_17" in out
    assert "rows.jsonl:3: not recognised as marked" in out
    code, out, _ = run(capsys, desk / "rows.jsonl", *given(desk), "--level", "1e-300")
    assert "none of 50 accounts reaches 1e-300" in out


def test_text_is_encoded_and_another_tokenizer_is_warned_of(
    capsys: pytest.CaptureFixture[str], desk: Path, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "llama"}')
    new_keys(tmp_path / "keys.json", marking={}, tokenizer_hash="ab" * 32)
    (tmp_path / "a.txt").write_text("the cat sat on the mat and that was that")
    code, out, err = run(
        capsys, tmp_path / "a.txt", "--keys", tmp_path / "keys.json", "--accounts", desk / "accounts.txt",
        "--tokenizer", tmp_path / "tokenizer", "--json",
    )  # fmt: skip
    assert code == 0
    (row,) = json.loads(out)["documents"]
    assert row["n_tokens"] == len(tokenizer.encode("the cat sat on the mat and that was that"))
    assert "is another tokenizer" in err
    assert load_keys(tmp_path / "keys.json").id in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"tokens": [1, -2]}', "line 1: tokens[1] is -2, not a token id"),
        (b'{"tokens": [1, 4294967296]}', "line 1: tokens[1] is 4294967296, not a token id"),
        (b'{"tokens": [1], "prompt_tokens": 7}', "line 1: prompt_tokens is not a list of token ids"),
        (b'{"tokens": [1]}\n{"id": "b"}', "line 2: has neither text nor tokens"),
        (b'{"text": 5}', "line 1: its text is no text"),
        (b'{"text": "a"}', "tokenizer with --tokenizer PATH"),
        (b"[1]", "line 1 is not a JSON object"),
        (b"{", "line 1 is not JSON"),
        (b"\0\1", "line 1 is binary"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 10"),
    ],
)
def test_rows_that_are_no_documents_are_bad_input(
    capsys: pytest.CaptureFixture[str], desk: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    code, out, err = run(capsys, tmp_path / "rows.jsonl", *given(desk))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("extra", [["--level", "2"], ["--top", "0"], ["--epoch", "1999"], ["--scheme", "kwg"]])
def test_bad_options_are_bad_input(capsys: pytest.CaptureFixture[str], desk: Path, extra: list[str]) -> None:
    code, out, err = run(capsys, desk / "rows.jsonl", *given(desk), *extra)
    assert (code, out) == (2, "")
    assert extra[1] in err


def test_missing_and_unreadable_files_are_bad_input(
    capsys: pytest.CaptureFixture[str], desk: Path, tmp_path: Path
) -> None:
    (tmp_path / "no.parquet").write_bytes(b"no")
    for path, said in ((tmp_path / "none.txt", "no such file"), (tmp_path, "cannot be read")):
        assert said in run(capsys, path, *given(desk))[2]
    assert "not a readable Parquet file" in run(capsys, tmp_path / "no.parquet", *given(desk))[2]
    assert "no such file" in run(capsys, tmp_path / "none.parquet", *given(desk))[2]
