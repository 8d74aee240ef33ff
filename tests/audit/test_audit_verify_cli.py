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
        (["CASE", "--signer", "root.pem"], "no public key"),
        (["CASE", "--tsa", "auditor.pub"], "certificates are not PEM"),
        (["CASE", "--files", "."], "--files"),
    ],
)
def test_what_is_given_wrongly_is_said(
    made: kit.Made, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made.path.parent)
    done = run(app, ["audit", "verify", *(str(made.path) if one == "CASE" else one for one in arguments)])
    assert done.exit_code != 0
    assert says in (str(done.exception) if isinstance(done.exception, BadInput) else done.output)


def test_what_is_no_case_fails(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"hello")
    done = run(app, ["audit", "verify", str(tmp_path / "x.zip")])
    assert done.exit_code == 1 and "not a case as `audit run` writes it" in done.output
