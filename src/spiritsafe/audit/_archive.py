"""CASE.zip as bytes: written in one way only, and read only if it was written so.

A case is a zip file with every file stored, names sorted, one fixed time, no comment, no extra field, nothing before,
between or after. So the same files give the same bytes anywhere (compressed bytes differ between versions of zlib), a
file never unpacks to more than its archive holds, and there is no byte in it that could be changed unseen: the reader
makes every header anew and compares. Any unzip opens it. Layout: PKWARE, APPNOTE.TXT 6.3.3, sections 4.3.7 to 4.3.16.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.runs import atomic_file

__all__ = ["MOST_BYTES", "parse_json", "read_json", "unpack", "write_archive"]

MOST_BYTES = 2 << 30
_MOST_FILES = 10_000
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}){0,2}")
_CHUNK = 1 << 20
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_VERSION = 20
_TIME, _DATE = 0, (1980 - 1980) << 9 | 1 << 5 | 1  # midnight, 1 January 1980: the earliest there is
_MODE = 0o100644 << 16  # a plain file, never a link
_FIELDS = struct.Struct("<HHHHHIIIHH")
_MOST_JSON, _DEEPEST = 64 << 20, 64


def write_archive(out: Path, files: Mapping[str, bytes | Path]) -> None:
    """Write a case, atomically. files: name in the case → its bytes, or where they are.

    Raises:
        BadInput: a name is none that a case may have, or they are too large together; nothing is written.
        SpiritsafeError: the disk does not take it, or a file cannot be read; nothing is written.
    """
    _check_names(files)
    try:
        with atomic_file(out) as target:
            _fill(target, out, files)
    except OSError as error:
        raise SpiritsafeError(
            f"{out}: the case cannot be written ({error.strerror}); fix it and run again: no question is asked twice"
        ) from None


def _fill(target: BinaryIO, out: Path, files: Mapping[str, bytes | Path]) -> None:
    central, at = [], 0
    for name in sorted(files):
        given = files[name]
        size, crc = _measure(given)
        header = _local(name, crc, size)
        if at + len(header) + size > MOST_BYTES:
            raise BadInput(f"{out}: larger than {MOST_BYTES >> 30} GiB; name fewer or smaller inputs in the plan")
        target.write(header)
        written = 0
        for chunk in _chunks(given):
            target.write(chunk)
            written += len(chunk)
        if written != size:
            raise BadInput(f"{name}: changed while it was read; let nothing else write there, and try again")
        central.append(_listed(name, crc, size, at))
        at += len(header) + size
    target.write(_ending(central, at))


def unpack(path: Path, folder: Path) -> dict[str, str]:
    """Write the files of a case into an empty folder; name → SHA-256.

    Raises:
        BadInput: it cannot be read, or is not byte for byte what `write_archive` writes of these files.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES + (4 << 20):
                raise BadInput(f"{path}: larger than any case ({MOST_BYTES >> 30} GiB)")
            return _Unpacking(path, file, folder).run(size)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a CASE.zip") from None


class _Unpacking:
    def __init__(self, path: Path, file: BinaryIO, folder: Path) -> None:
        self._path, self._file, self._folder = path, file, folder
        self._hashes: dict[str, str] = {}

    def run(self, size: int) -> dict[str, str]:
        central: list[bytes] = []
        at = 0
        while (mark := self._file.read(4)) == _LOCAL:
            name, header, crc, length = self._header(mark)
            if at + len(header) + length > size:
                raise self._bad(f"{name}: it says to be longer than the archive: cut off, or made to deceive")
            self._hashes[name] = self._copy(name, crc, length)
            central.append(_listed(name, crc, length, at))
            at += len(header) + length
        rest = mark + self._file.read(len(b"".join(central)) + 64)
        if rest != _ending(central, at) or not central:
            raise self._bad(
                "not a case as `audit run` writes it: repacked, cut off, changed, or something was put in or added"
            )
        _check_names(self._hashes)
        return self._hashes

    def _header(self, mark: bytes) -> tuple[str, bytes, int, int]:
        fields = self._file.read(_FIELDS.size)
        if len(fields) < _FIELDS.size:
            raise self._bad("cut off within a header")
        _, _, method, _, _, crc, packed, length, name_length, extra = _FIELDS.unpack(fields)
        raw = self._file.read(min(name_length, 512))
        name = raw.decode("ascii", "replace")
        if not _NAME.fullmatch(name):
            raise self._bad(f"{name[:120]!r} is no name that a file of a case may have")
        if method != 0 or packed != length:
            raise self._bad(f"{name}: compressed; a case is stored as it is, so that nothing can unfold in it")
        header = _local(name, crc, length)
        if mark + fields + raw != header or extra:
            raise self._bad(f"{name}: its header was changed, or another program packed it")
        if self._hashes and name <= next(reversed(self._hashes)):
            again = "is there twice" if name in self._hashes else "is out of order"
            raise self._bad(f"{name}: {again}; a case has each file once, by name")
        if len(self._hashes) >= _MOST_FILES:
            raise self._bad(f"more than {_MOST_FILES} files")
        return name, header, crc, length

    def _copy(self, name: str, crc: int, left: int) -> str:
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, found = hashlib.sha256(), 0
        with target.open("xb") as out:
            while left:
                chunk = self._file.read(min(left, _CHUNK))
                if not chunk:
                    raise self._bad(f"{name}: cut off")
                out.write(chunk)
                digest.update(chunk)
                found, left = zlib.crc32(chunk, found), left - len(chunk)
        if found != crc:
            raise self._bad(f"{name}: its content was changed (checksum)")
        return digest.hexdigest()

    def _bad(self, what: str) -> BadInput:
        return BadInput(f"{self._path}: {what}")


def read_json(path: Path, where: str, *, most: int = _MOST_JSON) -> Any:
    """The JSON in a file that anybody may have written. See `parse_json`.

    Raises:
        BadInput: missing, larger than `most` bytes, or as `parse_json`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError:
        raise BadInput(f"{where}: the case does not have it") from None
    if len(raw) > most:
        raise BadInput(f"{where}: larger than {most >> 20} MiB; no case has such a file")
    return parse_json(raw, where)


def parse_json(raw: bytes, where: str) -> Any:
    """JSON that every reader reads alike: UTF-8, no key twice, no NaN or infinity, nesting within bounds.

    Raises:
        BadInput: it is something else.
    """
    depth = deepest = 0
    for mark in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', raw):
        first = raw[mark.start()]
        depth += (first in b"[{") - (first in b"]}")
        deepest = max(deepest, depth)
    if deepest > _DEEPEST:
        raise BadInput(f"{where}: nested {deepest} deep; no file of a case is")
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not valid JSON ({str(error)[:120]})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is too large")
    return number


def _check_names(names: Iterable[str]) -> None:
    """Each once, also where upper and lower case are the same, and none both a file and a folder."""
    seen = {name.lower() for name in names}
    folders = {parent for name in seen for parent in (name.rpartition("/")[0],) if parent}
    folders |= {parent for name in folders for parent in (name.rpartition("/")[0],) if parent}
    wrong = [name for name in names if not _NAME.fullmatch(name)]
    if wrong or len(seen) != len(list(names)) or folders & seen:
        raise BadInput(f"{', '.join(wrong)[:120] or 'files'}: not names that the files of a case may have together")


def _measure(given: bytes | Path) -> tuple[int, int]:
    size = crc = 0
    for chunk in _chunks(given):
        size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def _chunks(given: bytes | Path) -> Iterable[bytes]:
    if isinstance(given, bytes):
        yield given
        return
    with given.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _local(name: str, crc: int, size: int) -> bytes:
    return _LOCAL + _FIELDS.pack(_VERSION, 0, 0, _TIME, _DATE, crc, size, size, len(name), 0) + name.encode()


def _listed(name: str, crc: int, size: int, at: int) -> bytes:
    made_by = struct.pack("<H", 3 << 8 | _VERSION)  # Unix, so that the mode counts
    fields = _FIELDS.pack(_VERSION, 0, 0, _TIME, _DATE, crc, size, size, len(name), 0)
    return _CENTRAL + made_by + fields + struct.pack("<HHHII", 0, 0, 0, _MODE, at) + name.encode()


def _ending(central: list[bytes], at: int) -> bytes:
    listed = b"".join(central)
    return listed + _END + struct.pack("<HHHHIIH", 0, 0, len(central), len(central), len(listed), at, 0)
