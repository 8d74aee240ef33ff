"""`watermark detect` on files: JSON as promised, careful sentences, one line for what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marked import write
from spiritsafe.cli import main
from spiritsafe.keys import load_keys, new_keys
from train_kit import tiny_tokenizer

EPOCH = "2026-11"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    keys = new_keys(folder / "keys.json", marking={}, epoch=EPOCH)
    rows = [
        {"id": "leak", "tokens": write(keys, EPOCH, 17, 300, seed=1).tolist()},
        {"id": "human", "tokens": list(range(300))},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["watermark", "detect", *map(str, arguments)])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def test_json_is_what_the_interface_promises(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    code, out, _ = run(capsys, desk / "rows.jsonl", "--keys", desk / "keys.json", "--json")
    found: dict[str, Any] = json.loads(out)
    assert (code, found["scheme"]) == (0, "gumbel-dual")
    leak, human = found["documents"]
    assert leak["id"] == "leak"
    assert (leak["n_tokens"], leak["epoch"], leak["epochs_tried"], leak["decoys"]) == (300, EPOCH, 1, 1000)
    assert leak["log10_p"] < -15
    assert leak["rank_p"] == pytest.approx(1 / 1001)
    assert human["log10_p"] > -4
    assert found["pooled"]["n_scored"] == leak["n_scored"] + human["n_scored"]


def test_people_read_a_careful_sentence(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    code, out, _ = run(capsys, desk / "rows.jsonl", "--keys", desk / "keys.json", "--decoys", 0)
    assert code == 0
    assert "leak: marked. A text that does not depend on this key" in out
    other = desk / "other.json"
    new_keys(other, marking={}, epoch=EPOCH)
    _, out, _ = run(capsys, desk / "rows.jsonl", "--keys", other, "--decoys", 0)
    assert "inconclusive" in out


def test_rows_go_to_a_file_whole_or_not_at_all(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    out_file = desk / "out.jsonl"
    code, out, _ = run(
        capsys, desk / "rows.jsonl", "--keys", desk / "keys.json", "--decoys", 9, "--out", out_file, "--json"
    )
    assert code == 0
    assert json.loads(out)["documents"] == []
    assert [json.loads(line)["id"] for line in out_file.read_text().splitlines()] == ["leak", "human"]
    bad = desk / "bad.jsonl"
    bad.write_text((desk / "rows.jsonl").read_text() + '{"tokens": [1, -2]}\n')
    out_file.unlink()
    code, _, err = run(capsys, bad, "--keys", desk / "keys.json", "--decoys", 9, "--out", out_file)
    assert code == 2
    assert "line 3" in err
    assert not list(desk.glob("*out.jsonl*"))


def test_pool_is_one_corpus(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    _, out, _ = run(capsys, desk / "rows.jsonl", desk / "rows.jsonl", "--keys", desk / "keys.json", "--pool", "--json")
    found = json.loads(out)
    _, out, _ = run(capsys, desk / "rows.jsonl", "--keys", desk / "keys.json", "--json")
    assert found["documents"] == []
    assert found["pooled"]["log10_p"] == pytest.approx(json.loads(out)["pooled"]["log10_p"], rel=1e-9)


def test_engine_marks(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    params = desk / "params.json"
    params.write_text(json.dumps({"key": 7, "context_width": 2}))
    arguments = [desk / "rows.jsonl", "--engine", "vllm-gumbel", "--params", params, "--decoys", 99, "--json"]
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    leak = json.loads(out)["documents"][0]
    assert leak["epoch"] is None
    assert leak["log10_p"] > -4
    params.write_text(json.dumps({"key": 7, "ctx": 2}))
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "ctx" in err


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        (b"", [], "empty"),
        (b"  \n ", [], "empty"),
        (b"a\0b", [], "binary"),
        (b"caf\xe9", [], "byte 3"),
        (b"some text", ["--no-tokenizer"], "--tokenizer"),
    ],
)
def test_unreadable_texts_get_one_line(
    capsys: pytest.CaptureFixture[str], desk: Path, tmp_path: Path, content: bytes, arguments: list[str], says: str
) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with_tokenizer = [] if arguments else ["--tokenizer", desk / "tokenizer"]
    code, out, err = run(capsys, path, "--keys", desk / "keys.json", *with_tokenizer)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_ids_of_another_vocabulary_are_refused(capsys: pytest.CaptureFixture[str], desk: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"tokens": [1, 2, 4000000]}\n')
    code, _, err = run(capsys, path, "--keys", desk / "keys.json", "--tokenizer", desk / "tokenizer")
    assert code == 2
    assert "line 1: tokens[2] is 4000000, outside the vocabulary of" in err


def test_another_tokenizer_is_warned_about(capsys: pytest.CaptureFixture[str], desk: Path, tmp_path: Path) -> None:
    keys = tmp_path / "bound.json"
    new_keys(keys, marking={}, epoch=EPOCH, tokenizer_hash="0" * 64)
    path = tmp_path / "x.txt"
    path.write_text("copper still " * 30)
    code, _, err = run(capsys, path, "--keys", keys, "--tokenizer", desk / "tokenizer", "--decoys", 9)
    assert code == 0
    assert "warning" in err
    assert "000000000000" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "either --keys"),
        (["--keys", "none.json"], "none.json"),
        (["--engine", "vllm-gumbel"], "--params"),
        (["--keys", "KEYS", "--epoch", "1999-01"], "1999-01"),
        (["--keys", "KEYS", "--scheme", "magic"], "magic"),
        (["--keys", "KEYS", "--level", "2"], "--level"),
    ],
)
def test_what_cannot_be_tested_for(
    capsys: pytest.CaptureFixture[str], desk: Path, arguments: list[str], says: str
) -> None:
    given = [str(desk / "keys.json") if a == "KEYS" else a for a in arguments]
    code, _, err = run(capsys, desk / "rows.jsonl", *given)
    assert code == 2
    assert says in err


def test_greedy_marks_are_read_with_their_scheme(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    keys = load_keys(desk / "keys.json")
    assert keys.current.name == EPOCH
    _, out, _ = run(
        capsys, desk / "rows.jsonl", "--keys", desk / "keys.json", "--scheme", "kgw", "--json", "--decoys", 0
    )
    found = json.loads(out)
    assert found["scheme"] == "kgw"
    assert all(np.isfinite(row["log10_p"]) and row["log10_p"] > -4 for row in found["documents"])


def test_the_best_of_many_documents_pays_for_all_of_them(
    capsys: pytest.CaptureFixture[str], desk: Path, tmp_path: Path
) -> None:
    """Two hundred texts, the 120th marked: it is found beyond what a table shows, and corrected for 200."""
    keys = load_keys(desk / "keys.json")
    random = np.random.default_rng(0)
    rows = [{"id": f"d{i}", "tokens": random.integers(0, 400, 60).tolist()} for i in range(200)]
    rows[120] = {"id": "leak", "tokens": write(keys, EPOCH, 17, 300, seed=3).tolist()}
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run(capsys, path, "--keys", desk / "keys.json", "--decoys", 0)
    assert code == 0
    assert "leak: marked." in out
    assert "corrected for 200 documents" in out
    assert "50 most significant of 200" in out
    # the corpus as one has a line of its own: the leak is a fortieth of it, so whether it shows depends on the key
    assert sum(": marked." in line for line in out.splitlines() if not line.startswith("all 200 as one")) == 1
    _, out, _ = run(capsys, path, "--keys", desk / "keys.json", "--decoys", 0, "--json")
    found = json.loads(out)
    assert len(found["documents"]) == 200
    assert found["summary"] == {"documents": 200, "level": 1e-6, "marked": 1}
    _, out, _ = run(
        capsys, path, "--keys", desk / "keys.json", "--decoys", 0, "--out", tmp_path / "rows.jsonl", "--json"
    )
    assert json.loads(out)["summary"]["marked"] == 1


def test_rows_with_text_show_that_the_tokenizer_is_another(
    capsys: pytest.CaptureFixture[str], desk: Path, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    text = "the copper still, and the worm under it. " * 5
    ids = tokenizer.encode(text, add_special_tokens=False)
    path = tmp_path / "both.jsonl"
    arguments = [path, "--keys", desk / "keys.json", "--tokenizer", desk / "tokenizer", "--decoys", 0, "--json"]
    path.write_text(json.dumps({"text": text, "tokens": ids}) + "\n")
    _, out, err = run(capsys, *arguments)
    assert json.loads(out)["warnings"] == []
    assert "warning" not in err
    path.write_text(json.dumps({"text": text, "tokens": [(i * 7 + 1) % 279 for i in ids]}) + "\n")
    code, out, err = run(capsys, *arguments)
    (warning,) = json.loads(out)["warnings"]
    assert code == 0
    assert f"of {len(ids) - 1} pairs" in warning
    assert warning in err


def test_a_tokenizer_json_alone_is_a_tokenizer(capsys: pytest.CaptureFixture[str], desk: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.json").write_bytes((desk / "tokenizer" / "tokenizer.json").read_bytes())
    path = tmp_path / "x.txt"
    path.write_text("copper still " * 30)
    read = []
    for tokenizer in (desk / "tokenizer", desk / "tokenizer" / "tokenizer.json", tmp_path / "alone.json"):
        code, out, _ = run(
            capsys, path, "--keys", desk / "keys.json", "--tokenizer", tokenizer, "--decoys", 0, "--json"
        )
        assert code == 0
        read.append(json.loads(out)["documents"])
    assert read[0] == read[1] == read[2]
    for broken, says in ((tmp_path / "none.json", "no such file"), (desk / "keys.json", "not a tokenizer.json")):
        code, _, err = run(capsys, path, "--keys", desk / "keys.json", "--tokenizer", broken)
        assert code == 2
        assert says in err


def test_an_interrupt_leaves_no_half_written_rows(
    capsys: pytest.CaptureFixture[str], desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spiritsafe.watermark._corpus import Corpus

    observe, calls = Corpus.observe, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return observe(*arguments)

    monkeypatch.setattr(Corpus, "observe", interrupted)
    code, out, _ = run(
        capsys, desk / "rows.jsonl", "--keys", desk / "keys.json", "--decoys", 9, "--out", tmp_path / "o.jsonl"
    )
    assert (code, out) == (130, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pool", "--out", "rows.jsonl"], "--out writes single documents"),
        (["--pool", "--entropy-model", "m.gguf"], "--entropy-model weighs single documents"),
        (["--out", "no/such/folder/rows.jsonl"], "cannot be written"),
        (["--decoys", "-1"], "--decoys"),
    ],
)
def test_options_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], desk: Path, arguments: list[str], says: str
) -> None:
    code, _, err = run(capsys, desk / "rows.jsonl", "--keys", desk / "keys.json", *arguments)
    assert code == 2
    assert says in err
