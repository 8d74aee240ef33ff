"""The crash journal: what was written is found again, what was torn never counts, and a full disk is said to be full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from journal_kit import FACTS, abandon, found

from ledger_kit import row
from spiritsafe.errors import BadInput
from spiritsafe.ledger import Journal, LedgerRow, Orphan, recover
from spiritsafe.ledger._journal import line


def test_what_was_in_flight_is_found(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", "worker-1")
    full = row(3, org="acme", asn=64500, features={"a": [1, 2.5]}, end_user="ü")
    journal.opened("req_a", FACTS)
    journal.opened("req_b", FACTS)
    journal.may_release("req_b", 64)
    journal.may_release("req_b", 32)  # already allowed
    journal.may_release("req_b", 128)
    journal.opened(full.request_id, FACTS)
    journal.closed(full)
    journal.opened("req_d", FACTS)
    journal.forget(["req_d"])  # never went upstream
    abandon(journal)
    assert found(tmp_path / "journal") == {
        "req_a": (FACTS, None, None),
        "req_b": (FACTS, 128, None),
        full.request_id: (FACTS, None, full),
    }
    assert os.listdir(tmp_path / "journal") == []


def test_a_living_process_keeps_its_journal(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "w")
    journal.opened("req_a", FACTS)
    assert recover(tmp_path) == []
    code = f"from pathlib import Path; from spiritsafe.ledger import recover; print(recover(Path({str(tmp_path)!r})))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == "[]\n"
    journal.close()  # something is in flight: it stays
    assert [orphan.request_id for orphan in recover(tmp_path)] == ["req_a"]


def test_a_file_goes_with_its_last_orphan(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "w")
    journal.opened("req_a", FACTS)
    journal.opened("req_b", FACTS)
    abandon(journal)
    one, two = recover(tmp_path)
    assert recover(tmp_path) == []  # taken
    one.done()
    one.done()
    assert journal.path.exists()
    two.done()
    assert not journal.path.exists()


def test_an_unfinished_recovery_is_done_again(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "w")
    journal.closed(row(1))
    abandon(journal)
    code = (
        "import os; from pathlib import Path; from spiritsafe.ledger import recover\n"
        f"assert len(recover(Path({str(tmp_path)!r}))) == 1\nos._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert found(tmp_path)["req_000001"] == ({}, None, row(1))


def test_what_is_durable_is_forgotten(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "w")
    empty = journal.path.stat().st_size
    for n in range(50):
        journal.opened(f"req_{n:06d}", FACTS)
        journal.closed(row(n))
    journal.forget([f"req_{n:06d}" for n in range(50)])
    assert journal.path.stat().st_size == empty
    journal.opened("req_a", FACTS)
    abandon(journal)
    assert found(tmp_path) == {"req_a": (FACTS, None, None)}


def test_it_does_not_grow_while_something_is_always_open(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "w", large=20_000)
    journal.opened("req_stays", FACTS)
    journal.may_release("req_stays", 7)
    sizes = []
    for n in range(1000):
        journal.opened(f"req_{n:06d}", FACTS)
        journal.may_release(f"req_{n:06d}", n)
        journal.closed(row(n))
        journal.forget([f"req_{n - 1:06d}"])
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert max(sizes) < 30_000
    assert len(os.listdir(tmp_path)) == 1
    abandon(journal)
    state = found(tmp_path)
    assert state["req_stays"] == (FACTS, 7, None)
    # the last one, and rows that are durable already: the ledger knows those
    assert state["req_000999"][2] == row(999)
    assert all(closed is not None for name, (_, _, closed) in state.items() if name != "req_stays")


def test_closing_with_nothing_in_flight_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "w")
    journal.opened("req_a", FACTS)
    journal.closed(row(1, request_id="req_a"))
    journal.forget(["req_a"])
    journal.close()
    journal.close()
    assert os.listdir(tmp_path) == []


def whole_journal(folder: Path) -> bytes:
    journal = Journal.open(folder, "w")
    journal.opened("req_a", FACTS)
    journal.may_release("req_a", 64)
    journal.opened("req_000002", FACTS)
    journal.closed(row(2))
    journal.may_release("req_a", 128)
    content = journal.path.read_bytes()
    journal.forget(["req_a", "req_000002"])
    journal.close()
    return content


def test_a_file_cut_at_any_byte_says_what_its_whole_lines_say(tmp_path: Path) -> None:
    content = whole_journal(tmp_path)
    ends = [n + 1 for n, byte in enumerate(content) if byte == ord("\n")]
    states: list[dict[str, object]] = [
        {},
        {"req_a": (FACTS, None, None)},
        {"req_a": (FACTS, 64, None)},
        {"req_a": (FACTS, 64, None), "req_000002": (FACTS, None, None)},
        {"req_a": (FACTS, 64, None), "req_000002": (FACTS, None, row(2))},
        {"req_a": (FACTS, 128, None), "req_000002": (FACTS, None, row(2))},
    ]
    for cut in range(ends[0], len(content) + 1):
        (tmp_path / "x.journal").write_bytes(content[:cut])
        assert found(tmp_path) == states[sum(end <= cut for end in ends) - 1], cut
        assert os.listdir(tmp_path) == []


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_file_gives_what_is_whole_and_is_kept(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(whole_journal(folder))
    at = data.draw(st.integers(0, len(content) - 2))
    content[at] ^= data.draw(st.integers(1, 255))
    path = folder / "x.journal"
    path.write_bytes(content)
    said: list[str] = []
    orphans = recover(folder, said.append)
    for orphan in orphans:
        assert orphan.facts in (FACTS, {})
        assert orphan.row in (row(2), None)
        assert orphan.released_tokens in (64, 128, None)
        orphan.done()
    assert not path.exists()
    assert (folder / "x.damaged").read_bytes() == bytes(content)
    assert len(said) == 1 and "the file is kept as" in said[0] and "x.damaged" in said[0]


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"hello\n" * 20, os.urandom(3000), b"\n\n\n"])
def test_garbage_is_kept_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.journal").write_bytes(content)
    said: list[str] = []
    assert recover(tmp_path, said.append) == []
    assert os.listdir(tmp_path) == ["x.damaged"]
    assert "does not begin like a journal" in said[0] or "is damaged" in said[0]
    assert recover(tmp_path, said.append) == [] and len(said) == 1


def test_a_newer_versions_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    path.write_bytes(line(["spiritsafe-journal/2", ["ts"]]) + line(["whatever"]))
    said: list[str] = []
    assert recover(tmp_path, said.append) == []
    assert path.exists() and "newer version" in said[0]


def test_rows_of_another_versions_fields_are_read(tmp_path: Path) -> None:
    fields = [*reversed(LedgerRow._fields[:-3]), "colour"]
    values = [*reversed(row(5)[:-3]), "blue"]
    (tmp_path / "x.journal").write_bytes(
        line(["spiritsafe-journal/1", fields]) + line(["closed", "req_000005", values])
    )
    assert found(tmp_path) == {"req_000005": ({}, None, row(5))}


def test_a_request_in_two_files_is_one_orphan(tmp_path: Path) -> None:
    """A process died after it had written its second file and before it removed the first."""
    journal = Journal.open(tmp_path, "w")
    journal.opened("req_a", FACTS)
    journal.opened("req_000002", FACTS)
    first = journal.path.read_bytes()
    journal.may_release("req_a", 9)
    journal.closed(row(2))
    abandon(journal)
    (tmp_path / "a-first.journal").write_bytes(first)
    orphans = recover(tmp_path)
    assert {o.request_id: (o.facts, o.released_tokens, o.row) for o in orphans} == {
        "req_a": (FACTS, 9, None),
        "req_000002": (FACTS, None, row(2)),
    }
    for orphan in orphans:
        orphan.done()
    assert os.listdir(tmp_path) == []


def test_half_made_files_go_in_time(tmp_path: Path) -> None:
    new, old = tmp_path / ".new.journal", tmp_path / ".old.journal"
    for path in (new, old):
        path.write_bytes(b"")
    os.utime(old, (time.time() - 3600,) * 2)
    assert recover(tmp_path) == []
    assert os.listdir(tmp_path) == [".new.journal"]


def test_a_folder_that_cannot_be_used_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"set state\.journal"):
        Journal.open(tmp_path / "file" / "journal", "w")
    assert recover(tmp_path / "nowhere") == []


class Life(RuleBasedStateMachine):
    """Whatever was done, a crash now leaves exactly what is in flight."""

    def __init__(self) -> None:
        super().__init__()
        self.held = tempfile.TemporaryDirectory()
        self.folder = Path(self.held.name)
        self.journal = Journal.open(self.folder, "w", large=1500)
        self.live: dict[str, list[object]] = {}
        self.durable: set[str] = set()

    @rule(n=st.integers(0, 8))
    def opened(self, n: int) -> None:
        name = f"req_{n:06d}"
        if name not in self.live and name not in self.durable:
            self.journal.opened(name, {"n": n})
            self.live[name] = [{"n": n}, None, None]

    @rule(n=st.integers(0, 8), tokens=st.integers(0, 500))
    def may_release(self, n: int, tokens: int) -> None:
        name = f"req_{n:06d}"
        if name in self.live and self.live[name][2] is None:
            self.journal.may_release(name, tokens)
            self.live[name][1] = max(tokens, self.live[name][1] or 0)  # type: ignore[call-overload]

    @rule(n=st.integers(0, 8))
    def closed(self, n: int) -> None:
        name = f"req_{n:06d}"
        if name not in self.durable:
            self.journal.closed(row(n))
            self.live.setdefault(name, [{}, None, None])[2] = row(n)

    @rule(n=st.integers(0, 8))
    def forget(self, n: int) -> None:
        name = f"req_{n:06d}"
        self.journal.forget([name])
        if (state := self.live.pop(name, None)) is not None and state[2] is not None:
            self.durable.add(name)

    @invariant()
    def a_crash_now_leaves_what_is_in_flight(self) -> None:
        copy = self.folder.parent / f"{self.folder.name}-copy"
        shutil.copytree(self.folder, copy)
        try:
            state = found(copy)
        finally:
            shutil.rmtree(copy)
        # a row that is durable may come again: the ledger knows it
        assert {name for name in state if name in self.live or state[name][2] is None} == set(self.live)
        for name, (facts, released, closed) in self.live.items():
            assert state[name][2] == closed
            if closed is None:
                assert state[name][:2] == (facts, released)
        assert set(state) - set(self.live) <= self.durable

    def teardown(self) -> None:
        self.journal.close()
        self.held.cleanup()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_orphans_show_no_files() -> None:
    assert repr(Orphan("req_a", {"a": 1})) == (
        "Orphan(request_id='req_a', facts={'a': 1}, released_tokens=None, row=None)"
    )
