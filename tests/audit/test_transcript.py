"""Transcripts: every line bound to the one before it; what was appended is there after any death of the process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spiritsafe.audit._transcript import Transcript, read_transcript
from spiritsafe.audit._types import Record
from spiritsafe.errors import BadInput

PLAN = "ab" * 32
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

text = st.text(st.characters(codec=None), max_size=12)  # lone surrogates too
scalar = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
value = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
thing = st.dictionaries(text, value, max_size=3)


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    made = []
    for _ in range(draw(st.integers(0, 5))):
        got = draw(st.none() | thing)
        error = draw(text) if got is None else None
        ts = draw(st.floats(0, 2e9))
        made.append(Record(draw(text), draw(text), ts, draw(st.integers(1, 9)), draw(thing), got, error))
    return made


def write(path: Path, made: list[Record]) -> bytes:
    path.unlink(missing_ok=True)
    with Transcript.open(path, PLAN) as transcript:
        for record in made:
            transcript.append(record)
    return path.read_bytes()


def sample(count: int = 4) -> list[Record]:
    return [
        Record("twins", f"item {i}", 1e9 + i, 1, {"request_id": f"{i}"}, {"replies": ["é", 0.5]} if i % 2 else None,
               None if i % 2 else "server: 503")
        for i in range(count)
    ]  # fmt: skip


@quick
@given(records())
def test_what_was_written_is_read_back(tmp_path: Path, made: list[Record]) -> None:
    write(tmp_path / "t.jsonl", made)
    assert read_transcript(tmp_path / "t.jsonl", PLAN) == made
    with Transcript.open(tmp_path / "t.jsonl", PLAN) as transcript:
        assert list(transcript.records()) == made


def test_lines_are_what_the_design_page_says(tmp_path: Path) -> None:
    import hashlib

    prev = PLAN
    for number, raw in enumerate(write(tmp_path / "t.jsonl", sample()).splitlines()):
        line = json.loads(raw)
        assert list(line) == sorted({"n", "prev", "ts", "attempt", "test", "item", "asked", "got", "error", "hash"})
        said = line.pop("hash")
        bare = json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
        assert (line["n"], line["prev"], said) == (number, prev, hashlib.sha256(bare).hexdigest())
        prev = said


@quick
@given(st.data())
def test_any_changed_byte_is_found(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(write(tmp_path / "t.jsonl", sample()))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    (tmp_path / "t.jsonl").write_bytes(raw)
    with pytest.raises(BadInput):
        read_transcript(tmp_path / "t.jsonl", PLAN)


@pytest.mark.parametrize("how", ["drop", "swap", "twice"])
def test_lines_cannot_be_dropped_moved_or_repeated(tmp_path: Path, how: str) -> None:
    whole = write(tmp_path / "t.jsonl", sample()).splitlines(keepends=True)
    changed = {
        "drop": [whole[0], *whole[2:]],
        "swap": [whole[0], whole[2], whole[1], whole[3]],
        "twice": [whole[0], whole[0], *whole[1:]],
    }
    (tmp_path / "t.jsonl").write_bytes(b"".join(changed[how]))
    with pytest.raises(BadInput, match="line 2 does not follow"):
        read_transcript(tmp_path / "t.jsonl", PLAN)


def test_a_transcript_belongs_to_one_plan(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", sample())
    with pytest.raises(BadInput, match="belongs to another plan"):
        Transcript.open(tmp_path / "t.jsonl", "cd" * 32)


def test_torn_anywhere_the_whole_lines_are_kept_and_it_goes_on(tmp_path: Path) -> None:
    made = sample()
    raw = write(tmp_path / "t.jsonl", made)
    ends = [i + 1 for i, byte in enumerate(raw) if byte == 10]
    for cut in sorted(
        {*range(0, len(raw), 23), *(end + step for end in ends for step in (-1, 0, 1) if end + step <= len(raw))}
    ):
        (tmp_path / "t.jsonl").write_bytes(raw[:cut])
        if cut and cut not in ends:
            with pytest.raises(BadInput, match="torn"):
                read_transcript(tmp_path / "t.jsonl", PLAN)
        whole = sum(end <= cut for end in ends)
        with Transcript.open(tmp_path / "t.jsonl", PLAN) as transcript:
            assert list(transcript.records()) == made[:whole]
            transcript.append(*made[whole:])
        assert (tmp_path / "t.jsonl").read_bytes() == raw


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'{"a":1,"a":2}',
        b'{ "a": 1 }',
        b'{"a":NaN}',
        b"[" * 100_000,
        b'{"n":0,"prev":"' + PLAN.encode() + b'"}',
        b"\xff\xfe",
        b"",
    ],
)
def test_other_things_than_records_are_one_clear_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "t.jsonl").write_bytes(line + b"\n")
    with pytest.raises(BadInput, match="line 1") as caught:
        read_transcript(tmp_path / "t.jsonl", PLAN)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "change",
    [
        {"ts": True},
        {"ts": "1"},
        {"attempt": 0},
        {"attempt": 1.0},
        {"asked": []},
        {"got": {"a": 1}, "error": "both"},
        {"got": None, "error": None},
        {"test": 1},
        {"more": 1},
    ],
)
def test_a_line_whose_hash_is_right_must_be_a_record_all_the_same(tmp_path: Path, change: dict[str, Any]) -> None:
    from spiritsafe.audit._transcript import Chain

    fields = {"test": "t", "item": "i", "ts": 1.0, "attempt": 1, "asked": {}, "got": {}, "error": None}
    chain, _ = Chain.open(tmp_path / "t.jsonl", PLAN)
    chain.append([fields | change])
    chain.close()
    with pytest.raises(BadInput, match="no record"):
        read_transcript(tmp_path / "t.jsonl", PLAN)


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with Transcript.open(tmp_path / "t.jsonl", PLAN) as transcript:
        transcript.append(*sample(2))
        with pytest.raises(ValueError, match="JSON"):
            transcript.append(Record("t", "i", 1.0, 1, {}, {"x": math.inf}))
        transcript.append(*sample(1))
    assert len(read_transcript(tmp_path / "t.jsonl", PLAN)) == 3


def test_canonical_json_is_the_ledgers() -> None:
    from spiritsafe.ledger._evidence import canonical_json

    for example in ({"b": [1, 2.5, "é"], "a": None}, [], {"x": {"z": True, "y": "\ud800"}}):
        assert canonical_json(example) == canonical_json(example)
