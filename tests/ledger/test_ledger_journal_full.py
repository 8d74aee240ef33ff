"""The crash journal on a full disk: what was refused left no trace, and it works on once there is room."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from journal_kit import FACTS, abandon, found

from ledger_kit import no_file_larger_than, row
from spiritsafe.ledger import Journal
from spiritsafe.state import Unavailable


@contextlib.contextmanager
def tiny_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(journal: Journal) -> int:
    """Open requests until the disk is full; how many were recorded."""
    for n in range(10_000):
        try:
            journal.opened(f"req_{n:06d}", FACTS)
        except Unavailable:
            return n
    raise AssertionError("the disk did not fill")


def check_full_disk(journal: Journal, folder: Path, opened: int) -> None:
    """What was refused left no trace, and the journal works on once there is room."""
    assert not journal.healthy
    with pytest.raises(Unavailable, match="make room"):
        journal.closed(row(0, user_agent="x" * 5000))
    journal.forget(f"req_{n:06d}" for n in range(opened - 5, opened))
    with contextlib.suppress(Unavailable):
        journal.may_release("req_000000", 5)


def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as folder:
        ballast = folder / "ballast"
        ballast.write_bytes(b"x" * 20_000)
        journal = Journal.open(folder, "w")
        opened = fill_up(journal)
        check_full_disk(journal, folder, opened)
        with pytest.raises(Unavailable):
            Journal.open(folder, "other")
        ballast.unlink()
        journal.opened("req_later", FACTS)
        assert journal.healthy
        abandon(journal)
        state = found(folder)
        wanted = {f"req_{n:06d}" for n in range(opened)} | {"req_later"}
        assert wanted - {f"req_{n:06d}" for n in range(opened - 5, opened)} <= set(state) <= wanted
        assert not list(folder.glob("*.damaged"))


def test_a_half_written_line_is_taken_back(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "w")
    with no_file_larger_than(journal.path.stat().st_size + 1000):
        opened = fill_up(journal)
        assert opened > 3
    journal.opened("req_later", FACTS)
    abandon(journal)
    assert set(found(tmp_path)) == {*(f"req_{n:06d}" for n in range(opened)), "req_later"}
    assert os.listdir(tmp_path) == []  # nothing torn, so nothing kept aside


def test_even_if_it_cannot_be_taken_back_no_later_line_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.open(tmp_path, "w")
    with monkeypatch.context() as patched:

        def refuse(*_: object) -> None:
            raise OSError(5, "Input/output error")

        patched.setattr(os, "ftruncate", refuse)
        with no_file_larger_than(journal.path.stat().st_size + 1000):
            opened = fill_up(journal)
    journal.opened("req_later", FACTS)
    abandon(journal)
    assert set(found(tmp_path)) == {*(f"req_{n:06d}" for n in range(opened)), "req_later"}
    assert [path.suffix for path in tmp_path.iterdir()] == [".damaged"]


def test_rotation_on_a_full_disk_goes_on_with_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.open(tmp_path, "w", large=1000)
    journal.opened("req_stays", FACTS)
    before = journal.path

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        for n in range(20):
            journal.closed(row(n))
            journal.forget([f"req_{n:06d}"])
    assert journal.path == before and len(os.listdir(tmp_path)) == 1
    for n in range(20, 60):
        journal.closed(row(n))
        journal.forget([f"req_{n:06d}"])
    assert journal.path != before
    abandon(journal)
    assert found(tmp_path)["req_stays"] == (FACTS, None, None)
