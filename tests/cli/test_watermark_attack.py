"""`watermark attack` on files: JSONL out, detection before and after, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from served import save_tiny_model, serving, tiny_tokenizer
from spiritsafe.cli import main
from spiritsafe.keys import new_keys
from spiritsafe.watermark._marker import Markers

PROSE = "The quick cat sat on a big mat. It was happy, and it said so! Why not? Nobody knew the answer to that."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", context=2048)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key set and byte-level documents marked for account 3, as ids."""
    import torch

    folder = tmp_path_factory.mktemp("desk")
    keys = new_keys(folder / "keys.json", marking={"surprise_bits": 0.0})
    markers = Markers(keys)
    rows = []
    for n in range(4):
        marker = markers.marker(keys.key_id(keys.current, 3), np.random.default_rng(n))
        ids: list[int] = []
        logits = torch.full((259,), -20.0)
        logits[32:64] = 0.0
        logits[tiny_tokenizer().get_vocab()["Ġ"]] = 1.5
        for _ in range(220):
            ids.append(int(marker([1], ids, logits).argmax()))
        rows.append({"id": f"d{n}", "tokens": ids})
    (folder / "marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "accounts.txt").write_text("ann\nbob\ncid\ndan\n")
    (folder / "a.txt").write_text(PROSE)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["watermark", "attack", *map(str, arguments)])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def test_writes_a_row_a_text_the_same_for_the_same_seed(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    arguments = (desk / "a.txt", "--attack", "delete:50", "--attack", "homoglyph:20")
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    (row,) = [json.loads(line) for line in out.splitlines()]
    assert (row["id"], row["attack"]) == (str(desk / "a.txt"), "delete:50 homoglyph:20")
    assert len(row["text"].split()) < len(PROSE.split())
    assert set(row["facts"]) == {"words_changed", "letters_changed"}
    assert run(capsys, *arguments)[1] == out
    assert run(capsys, *arguments, "--seed", "1")[1] != out


def test_says_what_is_found_before_and_after(
    capsys: pytest.CaptureFixture[str], desk: Path, model: Path, tmp_path: Path
) -> None:
    arguments = (
        desk / "marked.jsonl", "--attack", "truncate:50", "--keys", desk / "keys.json", "--tokenizer", model,
        "--accounts", desk / "accounts.txt",
    )  # fmt: skip
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["texts"], len(found["documents"])) == (4, 4)
    before, after = found["detection"]["before"], found["detection"]["after"]
    assert before["median_log10_p"] < -6
    assert before["power"] == {"0.001": 1.0, "1e-06": 1.0}
    assert before["named"] == {"cid": 4}
    assert after["median_log10_p"] > before["median_log10_p"]
    code, out, err = run(capsys, *arguments, "--out", tmp_path / "out.jsonl")
    assert (code, out) == (0, "")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4
    assert "before: 4 texts, median log10 p -" in err
    assert "named cid in 4" in err
    plain = json.loads(run(capsys, *arguments[:-2], "--json")[1])["detection"]
    assert plain["before"]["median_log10_p"] == before["median_log10_p"]
    assert "named" not in plain["before"]


def test_a_forger_names_the_account_whose_texts_he_had(
    capsys: pytest.CaptureFixture[str], desk: Path, model: Path
) -> None:
    code, out, _ = run(
        capsys, desk / "marked.jsonl", "--attack", "spoof:3", "--keys", desk / "keys.json", "--tokenizer", model,
        "--accounts", desk / "accounts.txt", "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert found["texts"] == 3
    assert set(found["detection"]["after"]["named"]) <= {"cid"}
    assert found["detection"]["after"]["median_log10_p"] < -6


@pytest.mark.parametrize("served", [False, True])
def test_paraphrases_with_local_weights_or_an_api(
    capsys: pytest.CaptureFixture[str], desk: Path, model: Path, served: bool
) -> None:
    def paraphrased(*rewriter: object) -> str:
        code, out, err = run(capsys, desk / "a.txt", "--attack", "paraphrase:2", *rewriter)
        assert (code, err) == (0, "")
        (row,) = [json.loads(line) for line in out.splitlines()]
        assert row["facts"]["passages_rewritten"] > 0
        text: str = row["text"]
        return text

    if served:
        with serving(model, model_name="tiny") as url:
            assert paraphrased("--rewriter", url, "--rewriter-model", "tiny") != PROSE
    else:
        assert paraphrased("--rewriter", model) != PROSE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--attack", "delte"], "did you mean delete"),
        (["--attack", "delete", "--keys", "KEYS"], "--keys needs --tokenizer"),
        (["--attack", "delete", "--accounts", "none.txt"], "--accounts needs --keys"),
        (["--attack", "paraphrase"], "--rewriter"),
        (["--attack", "paraphrase", "--rewriter", "http://127.0.0.1:9/v1"], "model"),
        (["--attack", "delete", "--out", "no/such/folder/x.jsonl"], "its folder does not exist"),
        (["--attack", "copy-paste", "--host", "none.txt"], "none.txt: no such file"),
    ],
)
def test_what_cannot_be_done_is_bad_input(
    capsys: pytest.CaptureFixture[str], desk: Path, arguments: list[str], said: str
) -> None:
    given = [str(desk / "keys.json") if a == "KEYS" else a for a in arguments]
    code, out, err = run(capsys, desk / "a.txt", *given)
    assert (code, out) == (2, "")
    assert said in err


def test_token_ids_need_a_tokenizer(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    code, _, err = run(capsys, desk / "marked.jsonl", "--attack", "delete")
    assert code == 2
    assert "d0: token ids; give --tokenizer" in err
