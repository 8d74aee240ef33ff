"""The guard's secrets: one file however many start at once, closed to others, never shown."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from spiritsafe.errors import BadInput
from spiritsafe.serve._secrets import GuardSecrets


def test_the_file_is_made_once_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "guard.secrets"
    first, second = GuardSecrets.load(path), GuardSecrets.load(path)
    assert len(first.pepper) == 32 and first.pepper == second.pepper
    assert first.signer.public_key() == second.signer.public_key()
    assert path.stat().st_mode & 0o777 == 0o600
    assert GuardSecrets.load(tmp_path / "other").pepper != first.pepper


def test_processes_that_start_at_once_end_with_one_file(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from spiritsafe.serve._secrets import GuardSecrets; print('up', flush=True);"
        "sys.stdin.readline(); print(GuardSecrets.load(pathlib.Path(sys.argv[1])).derive('x').hex())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "guard.secrets")]
    running = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(6)]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
    for process in running:  # all have imported: now they race
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = {process.communicate()[0] for process in running}
    assert len(said) == 1 and len(said.pop().strip()) == 64


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "guard.secrets"
    GuardSecrets.load(path)
    path.chmod(0o640)
    with pytest.raises(BadInput, match="chmod 600"):
        GuardSecrets.load(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no json", "not JSON"),
        ("[]", "not a guard's secrets"),
        ('{"format": "spiritsafe-guard-secrets/2"}', "upgrade spiritsafe"),
        ('{"format": "spiritsafe-guard-secrets/1", "pepper": "5ec2e7", "signing_key": "5ec2e7"}', "damaged at pepper"),
        ('{"format": "spiritsafe-guard-secrets/1", "signing_key": 52267}', "damaged at pepper, signing_key"),
    ],
)
def test_a_damaged_file_is_explained_without_its_contents(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "guard.secrets"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(BadInput, match=said) as caught:
        GuardSecrets.load(path)
    assert "5ec2e7" not in str(caught.value) and "52267" not in str(caught.value)
    assert path.read_text() == content, "never replaced: it may be a backup away from working"


def test_a_folder_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"state\.secrets"):
        GuardSecrets.load(tmp_path / "nowhere" / "guard.secrets")


def test_secrets_are_not_shown_copied_or_pickled(tmp_path: Path) -> None:
    path = tmp_path / "guard.secrets"
    loaded = GuardSecrets.load(path)
    hexed = json.loads(path.read_text())["pepper"]
    assert hexed not in repr(loaded) and repr(loaded.pepper)[2:20] not in f"{loaded!r} {loaded}"
    assert copy.deepcopy(loaded) is loaded
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(loaded)


def test_derived_keys_differ_by_purpose(tmp_path: Path) -> None:
    loaded = GuardSecrets.load(tmp_path / "guard.secrets")
    assert loaded.derive("a") == loaded.derive("a") != loaded.derive("b")
    assert loaded.derive("a") != loaded.pepper
