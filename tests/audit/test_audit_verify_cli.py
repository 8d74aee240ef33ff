"""`audit verify` as people and programs call it."""

from __future__ import annotations

import json
from pathlib import Path

import case_kit as kit
import pytest
from typer.testing import CliRunner

from spiritsafe.cli._main import app
from spiritsafe.errors import BadInput
from timestamps import running_authority

run = CliRunner().invoke


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> kit.Made:
    folder = tmp_path_factory.mktemp("case")
    with running_authority(folder / "tsa") as authority:
        case = kit.coins(folder, authority=authority, pairs=14, canaries=2)
    (folder / "root.pem").write_bytes(case.roots or b"")
    (folder / "empty.pem").write_bytes(b"")
    (folder / "auditor.pub").write_text((case.signer or b"").hex())
    return case


def given(made: kit.Made) -> list[str]:
    folder = made.path.parent
    return ["--signer", str(folder / "auditor.pub"), "--tsa", str(folder / "root.pem")]


def test_json_is_exactly_what_the_interface_says(made: kit.Made) -> None:
    done = run(app, ["audit", "verify", str(made.path), *given(made), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert set(said) == {"ok", "checks", "finding"} and said["ok"] is True
    assert list(said["checks"]) == ["bytes", "signatures", "time_order", "plan", "recompute"]
    assert set(said["finding"]) == {"class", "log10_p", "statement"} and said["finding"]["class"] == "proof"


def test_for_people_each_check_has_a_line_and_unanchored_a_reason(made: kit.Made) -> None:
    done = run(app, ["audit", "verify", str(made.path)])
    assert done.exit_code == 0
    assert "unanchored  signatures" in done.output and "give the signer's with --signer" in done.output
    assert "pass        recompute" in done.output and "lead: If the hypothesis" in done.output
    assert "python3 verify_case.py" in done.output


def test_a_failed_check_is_exit_1_with_the_reason_on_stderr(made: kit.Made, tmp_path: Path) -> None:
    raw = bytearray(made.path.read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "bad.zip").write_bytes(raw)
    done = run(app, ["audit", "verify", str(tmp_path / "bad.zip"), "--json"])
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert said["ok"] is False and said["checks"]["bytes"] == "fail" and said["finding"]["class"] == "inconclusive"
    assert done.stderr.startswith("bytes: ") and "checksum" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.zip"], "cannot be read"),
        (["CASE", "--tsa", "nothing.pem"], "cannot be read"),
        (["."], "cannot be read"),
        (["CASE", "--signer", "root.pem"], "no public key"),
        (["CASE", "--signer", "signer.pem"], "no public key but a private one"),
        (["CASE", "--tsa", "auditor.pub"], "no certificates in PEM form"),
        (["CASE", "--tsa", "empty.pem"], "no certificates in PEM form"),
        (["auditor.pub"], "no zip file, so no case"),
        (["empty.pem", "--json"], "no zip file, so no case"),
        (["CASE", "--files", "."], "--files"),
    ],
)
def test_what_is_given_wrongly_is_said(
    made: kit.Made, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made.path.parent)
    done = run(app, ["audit", "verify", *(str(made.path) if one == "CASE" else one for one in arguments)])
    assert isinstance(done.exception, BadInput) and says in str(done.exception) and not done.stdout


def test_what_cannot_be_opened_fails_one_check_and_says_so_once(made: kit.Made, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(made.path.read_bytes()[:3000])
    done = run(app, ["audit", "verify", str(tmp_path / "x.zip")])
    assert done.exit_code == 1 and done.output.count("fail ") == 1
    assert "inconclusive: Nothing follows from this case: it fails the check of bytes." in done.output


def test_a_case_of_another_format_says_which(made: kit.Made, tmp_path: Path) -> None:
    files = {name: raw for name, raw in made.files().items() if name != "reveal.json"}
    files["manifest.json"] = kit.edit(files["manifest.json"], lambda value: value | {"format": "spiritsafe-case/7"})
    done = run(app, ["audit", "verify", str(kit.again(tmp_path / "x.zip", files, manifest=False))])
    assert done.exit_code == 1 and "of the form spiritsafe-case/7, and this version of spiritsafe reads" in done.output
