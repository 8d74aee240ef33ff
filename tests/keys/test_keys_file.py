"""KEYS.json: never lost, never half written, never readable by others, and every damage is one line."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from spiritsafe.errors import BadInput
from spiritsafe.keys import KeySet, load_keys, new_keys, read_passphrase, rotate_keys
from spiritsafe.keys import _seal as seal_module

SHIPPED_COST = seal_module._COST
MARKING = {"scheme": "kgw", "gamma": 0.25}


@pytest.fixture(autouse=True)
def quick_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_module, "_COST", 2**10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def make(path: Path, **more: Any) -> KeySet:
    return new_keys(path, marking=MARKING, **{"epoch": "2026-11", **more})


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_made_is_what_is_read(path: Path) -> None:
    made = make(path, tenant="acme", tokenizer_hash="ab" * 32)
    assert re.fullmatch("ks_[0-9a-f]{8}", made.id)
    assert (made.tenant, made.marking, made.tokenizer_hash, made.encrypted) == ("acme", MARKING, "ab" * 32, False)
    assert [(e.name, e.state) for e in made.epochs] == [("2026-11", "active")]
    assert load_keys(path) == made


def test_two_key_sets_differ(tmp_path: Path) -> None:
    one, other = make(tmp_path / "1.json"), make(tmp_path / "2.json")
    assert one.id != other.id
    assert one.epoch_key("2026-11", "kgw") != other.epoch_key("2026-11", "kgw")


def test_the_first_epoch_is_this_month(path: Path) -> None:
    assert re.fullmatch(r"20\d\d-\d\d", new_keys(path, marking=MARKING).current.name)


def test_the_file_is_private_at_every_moment_even_under_a_loose_umask(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    replace, chmod = os.replace, os.chmod

    def watch() -> None:
        modes.extend(stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir())

    def watched_replace(source: str, target: Path) -> None:
        watch()
        replace(source, target)
        watch()

    def watched_chmod(name: str, mode: int) -> None:
        watch()
        chmod(name, mode)

    monkeypatch.setattr(os, "replace", watched_replace)
    monkeypatch.setattr(os, "chmod", watched_chmod)
    old = os.umask(0)
    try:
        make(path)
        rotate_keys(path)
    finally:
        os.umask(old)
    assert len(modes) >= 6
    assert set(modes) == {0o600}


def test_a_key_set_is_never_overwritten(path: Path) -> None:
    made = make(path)
    with pytest.raises(BadInput, match="never overwritten"):
        make(path)
    assert load_keys(path) == made
    dangling = path.with_name("link.json")
    dangling.symlink_to(path.with_name("nowhere.json"))
    with pytest.raises(BadInput, match="never overwritten"):
        make(dangling)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_file_others_may_use_is_refused_with_the_remedy(path: Path, mode: int) -> None:
    make(path)
    path.chmod(mode)
    with pytest.raises(BadInput, match=re.escape(f"(mode {mode:04o}); run: chmod 600 {path}")):
        load_keys(path)
    path.chmod(0o400)
    load_keys(path)


def test_encrypted_round_trip(path: Path) -> None:
    made = make(path, passphrase="correct horse é")
    assert made.encrypted
    assert load_keys(path, "correct horse é").epoch_key("2026-11", "kgw") == made.epoch_key("2026-11", "kgw")
    rotated = rotate_keys(path, epoch="2026-12", passphrase="correct horse é")
    assert load_keys(path, "correct horse é") == rotated
    assert "plain" not in json.loads(path.read_text())["master"]


def test_a_wrong_or_missing_passphrase_is_one_line(path: Path) -> None:
    make(path, passphrase="right")
    with pytest.raises(BadInput, match="encrypted; give its passphrase with --passphrase-env"):
        load_keys(path)
    with pytest.raises(BadInput, match="wrong passphrase, or the file is damaged"):
        load_keys(path, "wrong")
    before = path.read_bytes()
    with pytest.raises(BadInput, match="wrong passphrase"):
        rotate_keys(path, passphrase="wrong")
    assert path.read_bytes() == before


def test_the_sealed_secret_is_bound_to_its_key_set(tmp_path: Path) -> None:
    make(tmp_path / "1.json", passphrase="p")
    make(tmp_path / "2.json", passphrase="p")
    edit(tmp_path / "1.json", master=json.loads((tmp_path / "2.json").read_text())["master"])
    with pytest.raises(BadInput, match="wrong passphrase, or the file is damaged"):
        load_keys(tmp_path / "1.json", "p")


def test_the_cost_of_a_guess_is_owasp_s_or_more() -> None:
    assert SHIPPED_COST >= 2**17


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"format": "spiritsafe-keys/2"},
            "format 'spiritsafe-keys/2' is not known, this version reads spiritsafe-keys/1",
        ),
        ({"format": 1}, "not a key set"),
        ({"tenant": "other"}, "damaged or edited"),
        ({"marking": {"scheme": "kgw", "gamma": 0.5}}, "damaged or edited"),
        ({"tokenizer_hash": "00"}, "damaged or edited"),
        ({"id": "ks_00000000"}, "damaged or edited"),
        ({"mac": "é"}, "damaged or edited"),
        ({"master": {"plain": "00" * 32}}, "damaged or edited"),
        ({"master": {"plain": "5ec2e7" * 10}}, "damaged at master"),
        ({"master": "5ec2e7" * 10}, "damaged at master"),
        ({"epochs": []}, "damaged at epochs"),
        ({"surprise": 1}, "damaged at surprise"),
    ],
    ids=str,
)
def test_damage_is_one_line_without_the_secret(path: Path, changes: dict[str, Any], line: str) -> None:
    make(path)
    edit(path, **changes)
    with pytest.raises(BadInput, match=re.escape(line)) as caught:
        load_keys(path)
    assert "\n" not in str(caught.value)
    assert "5ec2e7" not in str(caught.value)


def test_every_flipped_byte_of_the_file_is_noticed(path: Path) -> None:
    made = make(path)
    raw = path.read_bytes()
    for position in range(0, len(raw), 3):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        try:
            assert load_keys(path) == made  # white space between the values
        except BadInput:
            continue
        assert chr(raw[position]).isspace()


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b"[" * 100_000, b'"spiritsafe-keys/1"'])
def test_files_of_another_kind_are_one_line(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    path.chmod(0o600)
    with pytest.raises(BadInput, match=r"not JSON; check|not a key set; make one"):
        load_keys(path)


def test_a_missing_file_a_folder_and_a_huge_file_are_one_line(path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        load_keys(path)
    path.parent.chmod(0o700)
    with pytest.raises(BadInput, match="cannot be read"):
        load_keys(path.parent)
    with path.open("wb") as file:
        file.truncate(2**30)
    path.chmod(0o600)
    with pytest.raises(BadInput, match="larger than 16 MiB"):
        load_keys(path)


def test_a_folder_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="its folder is unusable"):
        make(tmp_path / "no" / "keys.json")
    with pytest.raises(BadInput, match="its folder is unusable"):
        rotate_keys(tmp_path / "no" / "keys.json")


@pytest.mark.parametrize("name", ["", "a/b", " x", "-x", "a\n", "x" * 65, "märz"])
def test_names_that_would_break_a_key_id_are_refused(path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="use letters, digits"):
        make(path, epoch=name)
    with pytest.raises(BadInput, match="use letters, digits"):
        make(path, tenant=name)
    assert not path.exists()


def test_rotation_retires_and_keeps(path: Path) -> None:
    before = make(path)
    after = rotate_keys(path, epoch="2026-12")
    assert [(e.name, e.state) for e in after.epochs] == [("2026-11", "retired"), ("2026-12", "active")]
    assert after.current.name == "2026-12"
    assert after.epoch("2026-11").retired is not None
    assert after.epoch_key("2026-11", "kgw") == before.epoch_key("2026-11", "kgw")
    assert load_keys(path) == after


def test_a_compromised_epoch_is_opened(path: Path) -> None:
    make(path)
    ended = rotate_keys(path, epoch="2026-12", compromised=True).epoch("2026-11")
    assert ended.state == "opened"
    assert ended.opened == ended.retired is not None


def test_epochs_of_one_month_are_numbered(path: Path) -> None:
    month = new_keys(path, marking=MARKING).current.name
    assert rotate_keys(path).current.name == f"{month}.2"
    assert rotate_keys(path).current.name == f"{month}.3"
    with pytest.raises(BadInput, match=re.escape(f"epoch {month}.2: exists")):
        rotate_keys(path, epoch=f"{month}.2")


def test_a_backup_from_before_a_rotation_still_derives_the_new_epoch(path: Path) -> None:
    make(path)
    backup = path.read_bytes()
    after = rotate_keys(path, epoch="2026-12")
    path.write_bytes(backup)
    assert rotate_keys(path, epoch="2026-12").epoch_key("2026-12", "kgw") == after.epoch_key("2026-12", "kgw")


def test_rotation_through_a_link_keeps_the_link(path: Path) -> None:
    make(path)
    link = path.with_name("link.json")
    link.symlink_to(path)
    rotate_keys(link, epoch="2026-12")
    assert link.is_symlink()
    assert load_keys(path).current.name == "2026-12"


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BadInput, match="cannot be written \\(No space left on device\\)"):
        rotate_keys(path)
    assert load_keys(path) == before
    assert sorted(file.name for file in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


ROTATE = "import sys, pathlib; from spiritsafe.keys import rotate_keys; [rotate_keys(pathlib.Path(sys.argv[1])) for _ in range(5)]"


def test_processes_that_rotate_at_once_lose_no_epoch(path: Path) -> None:
    make(path)
    running = [subprocess.Popen([sys.executable, "-c", ROTATE, str(path)], stderr=subprocess.PIPE) for _ in range(4)]
    failures = [process.communicate(timeout=60)[1].decode() for process in running]
    assert failures == [""] * 4
    epochs = load_keys(path).epochs
    assert len(epochs) == 21
    assert [e.state for e in epochs] == ["retired"] * 20 + ["active"]


def test_of_processes_that_make_one_file_one_succeeds(path: Path) -> None:
    made: list[str] = []
    refused: list[str] = []

    def attempt() -> None:
        try:
            made.append(make(path).id)
        except BadInput as error:
            refused.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [load_keys(path).id] == made
    assert len(refused) == 7


def test_passphrases_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_PASSPHRASE", "from the environment")
    assert read_passphrase("KEYS_PASSPHRASE", None) == "from the environment"
    file = tmp_path / "passphrase"
    for text in ("from a file", "from a file\n", "from a file\r\n"):
        file.write_bytes(text.encode())
        assert read_passphrase(None, file) == "from a file"
    file.write_text(" two lines \n\n")
    assert read_passphrase(None, file) == " two lines \n"
    assert read_passphrase(None, None) is None


def test_passphrases_that_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", "")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for env, file, line in [
        ("EMPTY", None, "empty"),
        ("NOT_SET_AT_ALL", None, "is not set; export it first"),
        (None, tmp_path / "nowhere", "cannot be read"),
        (None, tmp_path / "binary", "not UTF-8"),
        ("EMPTY", tmp_path / "binary", "give one of them"),
    ]:
        with pytest.raises(BadInput, match=line):
            read_passphrase(env, file)
