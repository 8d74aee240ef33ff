"""`spiritsafe watermark keys …`: one JSON object, one line for an error, and no secret where none was asked for."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spiritsafe.cli import main
from spiritsafe.keys import _seal as seal_module
from spiritsafe.keys import load_keys

ROOT = Path(__file__).parents[2]


class Called:
    """The command in this process: exit code, stdout, stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["watermark", "keys", *map(str, arguments)])
        out, err = self.capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    def json(self, *arguments: str | Path) -> dict[str, Any]:
        code, out, _ = self(*arguments, "--json")
        assert code == 0
        assert out.count("\n") == 1
        value = json.loads(out)
        assert isinstance(value, dict)
        return value

    def refused(self, *arguments: str | Path) -> str:
        code, out, err = self(*arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        return err


@pytest.fixture
def keys(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Called:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(seal_module, "_COST", 2**10)
    return Called(capsys)


def secret_of(path: str) -> str:
    return str(json.loads(Path(path).read_text())["master"]["plain"])


@pytest.mark.parametrize("command", ["new", "rotate", "show", "commit", "open", "verify"])
def test_every_command_has_help_with_an_example(command: str, keys: Called) -> None:
    code, out, _ = keys(command, "--help")
    assert code == 0
    assert re.search(rf"Examples?: spiritsafe watermark keys {command} ", " ".join(out.split()))
    assert "--json" in out


def test_the_life_of_a_key_set(keys: Called) -> None:
    made = keys.json("new", "k.json", "--epoch", "2026-11", "--tenant", "acme")
    assert made["marking"]["scheme"] == "gumbel-dual"
    assert made["marking"]["context_width"] == 2
    assert (made["tenant"], made["encrypted"], made["current"]) == ("acme", False, "2026-11")
    assert stat.S_IMODE(Path("k.json").stat().st_mode) == 0o600

    rotated = keys.json("rotate", "k.json", "--epoch", "2026-12")
    assert [(e["name"], e["state"]) for e in rotated["epochs"]] == [("2026-11", "retired"), ("2026-12", "active")]
    assert keys.json("show", "k.json") == rotated

    published = keys.json("commit", "k.json", "--slots", "9", "--out", "c.json")
    assert published == json.loads(Path("c.json").read_text())
    assert published["committed"] == {"epoch": 2, "coin": 2, "account": 18}
    assert keys.json("commit", "k.json", "--slots", "9")["root"] == published["root"]

    opened = keys.json(
        "open", "k.json", "--epoch", "2026-11", "--slot", "4", "--commitment", "c.json", "--out", "l.json"
    )
    assert (opened["leaf"], opened["purpose"], opened["slot"]) == ("l.json", "account", 4)
    assert stat.S_IMODE(Path("l.json").stat().st_mode) == 0o600
    assert keys.json("verify", "l.json", "--commitment", "c.json") == {
        "ok": True, "key_set": made["id"], "purpose": "account", "scheme": "gumbel-dual", "epoch": "2026-11", "slot": 4,
        "committed": 18,
    }  # fmt: skip
    assert keys.json("show", "k.json")["epochs"][0]["opened_slots"] == [4]

    code, out, _ = keys("verify", "l.json", "--root", "00" * 32, "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False


def test_settings_of_the_marks_are_checked_and_kept(keys: Called) -> None:
    made = keys.json(
        "new", "k.json", "--scheme", "kgw", "--context-width", "3", "--set", "gamma=.3", "--set", "delta=2"
    )
    assert made["marking"] | {"scheme": "kgw", "context_width": 3, "gamma": 0.3, "delta": 2.0} == made["marking"]
    for wrong in (["--set", "gama=.3"], ["--scheme", "nonesuch"], ["--set", "gamma=2"], ["--context-width", "0"]):
        assert "marking" in keys.refused("new", "k2.json", "--scheme", "kgw", *wrong)
    assert not Path("k2.json").exists()


@pytest.mark.parametrize("scheme", ["gumbel-dual", "kgw", "synthid"])
def test_what_is_kept_are_settings_again(keys: Called, scheme: str) -> None:
    from spiritsafe.watermark._marking import Marking

    made = keys.json("new", "k.json", "--scheme", scheme)
    assert Marking(**made["marking"]) == Marking(scheme=scheme)  # type: ignore[arg-type]
    assert {"account_share", "surprise_bits"} < set(made["marking"])


def test_a_second_new_refuses(keys: Called) -> None:
    keys("new", "k.json")
    before = Path("k.json").read_bytes()
    assert "never overwritten" in keys.refused("new", "k.json")
    assert Path("k.json").read_bytes() == before


def test_no_output_shows_a_secret_except_an_opened_key(keys: Called) -> None:
    said = ["".join(keys("new", "k.json", "--epoch", "2026-11")[1:])]
    said += ["".join(keys(*arguments)[1:]) for arguments in [
        ["show", "k.json"], ["show", "k.json", "--json"], ["rotate", "k.json", "--epoch", "2026-12"],
        ["commit", "k.json", "--slots", "3", "--out", "c.json"], ["commit", "k.json", "--slots", "3", "--json"],
        ["open", "k.json", "--epoch", "2026-11", "--slot", "1", "--commitment", "c.json", "--out", "l.json"],
        ["open", "k.json", "--epoch", "2026-11", "--slot", "1", "--commitment", "c.json", "--out", "l2.json", "--json"],
        ["verify", "l.json", "--commitment", "c.json", "--json"], ["verify", "l.json", "--commitment", "c.json"],
    ]]  # fmt: skip
    held = load_keys(Path("k.json"))
    secrets = [secret_of("k.json"), held.epoch_key("2026-11", "gumbel-dual").hex()]
    secrets += [held.account_key("2026-11", slot, "gumbel-dual").hex() for slot in range(3)]
    assert all(said)
    for text in said:
        assert not [secret for secret in secrets if secret in text]
    shown = keys.json("open", "k.json", "--epoch", "2026-11", "--slot", "1", "--commitment", "c.json")
    assert shown["key"] == secrets[3] == json.loads(Path("l.json").read_text())["key"]


def test_encrypted_key_sets_ask_for_their_passphrase(keys: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASS", "correct horse")
    assert "give the passphrase with" in keys.refused("new", "k.json", "--encrypt")
    assert keys.json("new", "k.json", "--encrypt", "--passphrase-env", "PASS")["encrypted"] is True
    for command in (["show"], ["rotate"], ["commit"], ["open", "--epoch", "2026-11", "--purpose", "epoch"]):
        assert "encrypted; give its passphrase" in keys.refused(*command, "k.json")
    monkeypatch.setenv("PASS", "wrong")
    assert "wrong passphrase" in keys.refused("show", "k.json", "--passphrase-env", "PASS")
    Path("pass").write_text("correct horse\n")
    assert keys.json("rotate", "k.json", "--passphrase-file", "pass")["encrypted"] is True


def test_a_passphrase_alone_encrypts_too(keys: Called) -> None:
    Path("pass").write_text("correct horse\n")
    assert keys.json("new", "k.json", "--passphrase-file", "pass")["encrypted"] is True


def test_opening_an_epoch_key_says_what_it_costs(keys: Called) -> None:
    keys("new", "k.json", "--epoch", "2026-11")
    code, out, err = keys(
        "open", "k.json", "--epoch", "2026-11", "--purpose", "epoch", "--slots", "3", "--out", "l.json"
    )
    assert code == 0
    assert "epoch 2026-11 is now opened; restart what marks with k.json" in err
    assert "the epoch key of ks_" in out
    shown = keys.json("show", "k.json")
    assert shown["epochs"][0]["state"] == "opened"
    assert shown["current"] != "2026-11"


def test_many_accounts_open_at_once(keys: Called) -> None:
    keys("new", "k.json", "--epoch", "2026-11")
    keys("commit", "k.json", "--slots", "9", "--out", "c.json")
    code, out, err = keys(
        "open", "k.json", "--epoch", "2026-11", "--slot", "2-5", "--commitment", "c.json", "--out", "l.json"
    )
    assert (code, out.startswith("l.json: 4 account keys, slots 2 to 5 of ks_")) == (0, True)
    assert "noted as opened" in err
    assert stat.S_IMODE(Path("l.json").stat().st_mode) == 0o600
    opened = json.loads(Path("l.json").read_text())
    held = load_keys(Path("k.json"))
    assert [leaf["key"] for leaf in opened["leaves"]] == [
        held.account_key("2026-11", slot, "gumbel-dual").hex() for slot in (2, 3, 4, 5)
    ]
    assert keys.json("verify", "l.json", "--commitment", "c.json")["keys"] == 4
    assert "committed: 4 of 9 account keys" in keys("verify", "l.json", "--commitment", "c.json")[1]
    assert " 2-5" in keys("show", "k.json")[1]

    opened["leaves"][2]["slot"] = 6
    Path("l.json").write_text(json.dumps(opened))
    code, out, _ = keys("verify", "l.json", "--commitment", "c.json")
    assert code == 1
    assert "does not cover this key (slot 6)" in out


def test_bad_usage_is_one_line_and_opens_nothing(keys: Called) -> None:
    keys("new", "k.json", "--epoch", "2026-11")
    keys("commit", "k.json", "--slots", "3", "--out", "c.json")
    before = Path("k.json").read_bytes()
    opening = ["open", "k.json", "--epoch", "2026-11", "--commitment", "c.json"]
    for arguments, line in [
        (opening, "give --slot N"),
        ([*opening, "--slot", "1", "--purpose", "epoch"], "give --slot N"),
        ([*opening, "--purpose", "account"], "give --slot N"),
        ([*opening, "--slot", "3"], "has a slot below 3"),
        ([*opening, "--slot", "0-3"], "--slot 3: an account's key has a slot below 3"),
        ([*opening, "--slot", "2-1"], "the first and the last of several"),
        ([*opening, "--slot", "all"], "the first and the last of several"),
        ([*opening, "--purpose", "epoch", "--out", "c.json"], "c.json: exists"),
        ([*opening, "--purpose", "epoch", "--out", "no/l.json"], "no/l.json: its folder does not exist"),
        (["open", "k.json", "--epoch", "2026-12", "--purpose", "epoch"], "has no epoch '2026-12'"),
        (["commit", "k.json", "--out", "c.json"], "c.json: exists"),
        (["verify", "c.json"], "either --root HEX or --commitment"),
        (["verify", "c.json", "--commitment", "c.json"], "unknown key"),
        (["rotate", "k.json", "--epoch", "a/b"], "use letters, digits"),
        (["show", "nowhere.json"], "no such file"),
    ]:
        assert line in keys.refused(*arguments)
    assert Path("k.json").read_bytes() == before


@pytest.mark.slow
def test_the_tokenizer_is_remembered(keys: Called, smollm2_gguf: Path) -> None:
    made = keys.json("new", "k.json", "--tokenizer", smollm2_gguf)
    assert re.fullmatch("[0-9a-f]{64}", made["tokenizer_hash"])
    assert keys.json("show", "k.json")["tokenizer_hash"] == made["tokenizer_hash"]


@pytest.fixture(scope="module")
def after_the_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every shell block of docs/keys.md has run, with small commitments."""
    folder = tmp_path_factory.mktemp("page")
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/keys.md").read_text(), re.S)
    script = re.sub(r"keys commit (\S+)", r"keys commit \1 --slots 64", "\n".join(blocks))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_page_s_restored_keys_make_the_published_root(after_the_page: Path) -> None:
    published = json.loads((after_the_page / "COMMITMENT.json").read_text())
    restored = json.loads((after_the_page / "RESTORED.json").read_text())
    assert restored["root"] == published["root"]
    state = json.loads((after_the_page / "STATE.json").read_text())
    assert [(e["name"], e["state"]) for e in state["epochs"]] == [
        ("2026-11", "retired"), ("2026-12", "opened"), ("2027-01", "active"),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_page_s_check_with_hashlib_alone_agrees(after_the_page: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/keys.md").read_text(), re.S)
    scope: dict[str, Any] = {}
    exec(block, scope)
    leaf = json.loads((after_the_page / "LEAF.json").read_text())
    root = json.loads((after_the_page / "COMMITMENT.json").read_text())["root"]
    assert scope["covered"](leaf, root)
    assert not scope["covered"](leaf | {"slot": 18}, root)
    assert not scope["covered"](leaf | {"key": "00" * 16}, root)
    assert not scope["covered"](leaf, "00" * 32)
