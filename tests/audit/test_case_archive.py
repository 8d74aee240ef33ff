"""CASE.zip as bytes: written one way, and read only if it was; nothing a stranger made gets further than that."""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import case_kit as kit
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe.audit._archive import parse_json, read_json, unpack, write_archive
from spiritsafe.audit._case import build_case
from spiritsafe.errors import BadInput, SpiritsafeError

FILES = {"a.json": b"{}", "controls/x.jsonl": b"", "inputs/0123456789ab-t/tokenizer.json": b"x" * 3000, "z": b"\0"}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> kit.Made:
    return kit.coins(tmp_path_factory.mktemp("case"), signed=False, pairs=12, canaries=2)


def read(path: Path, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    return {name: (folder / name).read_bytes() for name in unpack(path, folder)}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.zip", FILES)
    assert read(tmp_path / "a.zip", tmp_path / "out") == FILES


def test_any_unzip_reads_it(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None and {name: archive.read(name) for name in archive.namelist()} == FILES


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(FILES["inputs/0123456789ab-t/tokenizer.json"])
    write_archive(tmp_path / "a.zip", FILES)
    again = dict(reversed(FILES.items())) | {"inputs/0123456789ab-t/tokenizer.json": tmp_path / "big"}
    write_archive(tmp_path / "b.zip", again)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_same_run_gives_the_same_case(case: kit.Made, tmp_path: Path) -> None:
    build_case(case.frozen, case.run, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == case.path.read_bytes()


def test_every_byte_counts(tmp_path: Path) -> None:
    """Each one of a small archive, changed: headers, names, content, directory, ending."""
    write_archive(tmp_path / "a.zip", {name: raw[:20] for name, raw in FILES.items()})
    raw = (tmp_path / "a.zip").read_bytes()
    for place in range(len(raw)):
        (tmp_path / "b.zip").write_bytes(raw[:place] + bytes([raw[place] ^ (1 << place % 8)]) + raw[place + 1 :])
        with pytest.raises(BadInput):
            read(tmp_path / "b.zip", tmp_path / f"out{place}")


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_in_a_case_fails_the_check_of_bytes(case: kit.Made, share: float, bit: int) -> None:
    raw = bytearray(case.path.read_bytes())
    raw[int(share * len(raw))] ^= 1 << bit
    path = case.path.with_name("flipped.zip")
    path.write_bytes(raw)
    found = case.verify(path)
    assert not found.ok and found.checks["bytes"] == "fail"
    assert len(found.reasons["bytes"]) == 1 and "\n" not in found.reasons["bytes"][0]


def test_a_flipped_bit_in_any_file_is_found_by_both_where_headers_are_made_to_fit(
    case: kit.Made, tmp_path: Path
) -> None:
    files, draws = case.files(), random.Random(1)
    for name, raw in files.items():
        changed = bytearray(raw)
        changed[draws.randrange(len(raw))] ^= 1 << draws.randrange(8)
        path = kit.again(tmp_path / "a.zip", files | {name: bytes(changed)}, manifest=False)
        assert case.verify(path).checks["bytes"] == "fail", name
        assert kit.second(path).returncode == 1, name


def repacked(method: int) -> Callable[[Path, Path], None]:
    def change(source: Path, out: Path) -> None:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w", method) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))

    return change


def named(name: str, *, link: bool = False) -> Callable[[Path, Path], None]:
    def change(source: Path, out: Path) -> None:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (0o120777 if link else 0o100644) << 16
        with zipfile.ZipFile(out, "w") as new:
            new.writestr(entry, b"/etc/passwd")

    return change


def edited(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    return lambda source, out: out.write_bytes(change(source.read_bytes())) and None


def twice(source: Path, out: Path) -> None:
    """A second file of the same name: which one do you read?"""
    raw = source.read_bytes()
    end = raw.index(b"PK\x03\x04", 4)
    out.write_bytes(raw[:end] + raw[:end] + raw[end:])


def bomb(source: Path, out: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("manifest.json", b"0" * (64 << 20))
    out.write_bytes(buffer.getvalue())


def claims(size: int) -> Callable[[Path, Path], None]:
    """A header that promises more than there is."""

    def change(raw: bytes) -> bytes:
        return raw[:18] + struct.pack("<II", size, size) + raw[26:]

    return edited(change)


HOSTILE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "not a zip": (edited(lambda raw: b"hello"), "not a case as"),
    "empty": (edited(lambda raw: b""), "not a case as"),
    "an empty zip": (edited(lambda raw: b"PK\5\6" + bytes(18)), "not a case as"),
    "cut off in the directory": (edited(lambda raw: raw[:-30]), "not a case as"),
    "cut off in a file": (edited(lambda raw: raw[:200]), "cut off"),
    "cut off in a header": (edited(lambda raw: raw[:20]), "cut off"),
    "something before": (edited(lambda raw: b"#!/bin/sh\n" + raw), "not a case as"),
    "something after": (edited(lambda raw: raw + b"x"), "not a case as"),
    "a comment": (edited(lambda raw: raw[:-2] + b"\5\0hello"), "not a case as"),
    "repacked, compressed": (repacked(zipfile.ZIP_DEFLATED), "compressed"),
    "repacked, stored": (repacked(zipfile.ZIP_STORED), "header"),
    "a bomb": (bomb, "compressed"),
    "a file longer than the archive": (claims(1 << 30), "longer than the archive"),
    "a file longer than can be": (claims(0xFFFFFFFF), "longer than the archive"),
    "traversal": (named("../../etc/cron.d/x"), "no name that"),
    "traversal within": (named("inputs/../../x"), "no name that"),
    "absolute": (named("/etc/passwd"), "no name that"),
    "backslashes": (named("..\\x"), "no name that"),
    "a hidden file": (named("inputs/.bashrc"), "no name that"),
    "a link": (named("plan.json", link=True), "not a case as"),
    "a folder": (named("inputs/"), "no name that"),
    "not ASCII": (named("plän.json"), "no name that"),
    "a file twice": (twice, "is there twice"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archives_are_refused_in_one_line(what: str, case: kit.Made, tmp_path: Path) -> None:
    change, says = HOSTILE[what]
    change(case.path, tmp_path / "bad.zip")
    found = case.verify(tmp_path / "bad.zip")
    assert set(found.checks.values()) == {"fail"}
    (line,) = found.reasons["bytes"]
    assert says in line and "\n" not in line and found.finding.grade == "inconclusive"
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zip"]


@pytest.mark.parametrize(
    "names", [["../x"], ["/x"], ["a", "a/b"], ["A", "a"], [""], ["a//b"], [".x"], ["a" * 200], ["a/b/c/d"]]
)
def test_names_that_no_case_has_are_not_written(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        write_archive(tmp_path / "a.zip", dict.fromkeys(names, b""))
    assert list(tmp_path.iterdir()) == []


def test_what_the_manifest_does_not_know_and_what_is_missing(case: kit.Made, tmp_path: Path) -> None:
    files = case.files()
    path = kit.again(tmp_path / "a.zip", files | {"readme.txt": b"hello"}, manifest=False)
    assert "readme.txt: the case has it, but" in case.verify(path).reasons["bytes"][0]
    gone = {name: raw for name, raw in files.items() if not name.startswith("inputs/")}
    assert (
        "the case does not have it"
        in case.verify(kit.again(tmp_path / "b.zip", gone, manifest=False)).reasons["bytes"][0]
    )
    for name in ("manifest.json", "plan.json", "transcripts.jsonl", "results.json"):
        left = {other: raw for other, raw in files.items() if other != name}
        found = case.verify(kit.again(tmp_path / "c.zip", left, manifest=False))
        assert found.reasons["bytes"] == (f"{name}: not in the case",)


@pytest.mark.parametrize("name", ["manifest.json", "results.json", "subject.json", "reveal.json", "plan.json"])
@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"a":' * 3000,
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a":1,"a":2}',
        b"\xff\xfe",
        b"[]",
        b"null",
        b"",
    ],
)
def test_json_that_is_none_or_hostile_fails_a_check(name: str, raw: bytes, case: kit.Made, tmp_path: Path) -> None:
    path = kit.again(tmp_path / "a.zip", case.files() | {name: raw}, manifest=name != "manifest.json")
    found = case.verify(path)
    assert not found.ok and all("\n" not in line for lines in found.reasons.values() for line in lines)
    if name != "subject.json":  # which the second verifier does not need
        assert kit.second(path).returncode == 1


def test_json_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'"' + b"x" * 200 + b'"')
    with pytest.raises(BadInput, match="larger than"):
        read_json(tmp_path / "x", "x", most=100)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))  # fmt: skip
def test_json_is_read_as_the_standard_library_reads_it(value: object) -> None:
    assert parse_json(json.dumps(value).encode(), "x") == value


@given(st.binary(max_size=200))
def test_bytes_are_json_or_bad_input(raw: bytes) -> None:
    with contextlib.suppress(BadInput):
        parse_json(raw, "x")


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(SpiritsafeError, match=r"CASE\.zip: the case cannot be written .*run again"):
            write_archive(tmp_path / "CASE.zip", {"a": b"x" * 20_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
