"""The logit cache: the teacher's top-k of every completion position, once, in a few bytes.

    logits/header.json      what this is: schema, teacher, tokenizer and template hash, k, temperature, packing,
                            example index, SHA-256 of every shard
    logits/shard-00000.bin  rows of one fixed size, memory-mapped

A row holds, for k alternatives in descending order: k ids of `id_bits` bits each, packed big-endian (16 bits up to
65,536 tokens); k one-byte codes c of the log-probability −32 (c / 254)², 255 where there is none; and the log of the
tail's mass as float16.
The square makes the codes densest where the probabilities are large. Reading scales the top-k to 1 − tail, so the
mass is right whatever the codes rounded. At k = 64 and 18-bit ids a row is 210 bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritsafe.errors import BadInput
from spiritsafe.records import SparseLogprobs
from spiritsafe.runs import atomic_write

__all__ = ["CacheInfo", "LogitCache", "decode_rows", "encode_rows", "write_cache"]

SCHEMA = "logits/1"
_FLOOR = 32.0
_ABSENT = 255
_SHARD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache was made from. Equal infos mean the cache can be used again.

    source: `exchanges` (log-probabilities the teacher's API returned) or `weights` (exact, from local weights).
    vocab: size of the real vocabulary; ids are below it.  inputs: hash of the examples, ids and text alike.
    """

    teacher: str
    revision: str | None
    source: str
    tokenizer_hash: str
    template_hash: str
    k: int
    temperature: float
    vocab: int
    inputs: str

    @property
    def id_bits(self) -> int:
        return 16 if self.vocab <= 1 << 16 else (self.vocab - 1).bit_length()

    @property
    def row_bytes(self) -> int:
        return (self.k * self.id_bits + 7) // 8 + self.k + 2


def encode_rows(targets: SparseLogprobs, info: CacheInfo) -> NDArray[np.uint8]:
    """(T, row_bytes) uint8 of T positions; alternatives beyond k become tail, short rows are padded."""
    assert targets.ids is not None
    ids, logprobs = _fit(targets.ids, info.k, -1), _fit(targets.top, info.k, -np.inf).astype(np.float64)
    known = ids >= 0
    mass = np.exp(np.where(known, logprobs, -np.inf)).sum(axis=1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.clip(1 - mass, 0, None)).astype(np.float16)
    codes = np.rint(254 * np.sqrt(np.clip(-np.where(known, logprobs, 0), 0, _FLOOR) / _FLOOR))
    codes = np.where(known, codes, _ABSENT).astype(np.uint8)
    bits = np.unpackbits(np.where(known, ids, 0).astype(">u4").view(np.uint8).reshape(*ids.shape, 4), axis=2)
    packed = np.packbits(bits[:, :, 32 - info.id_bits :].reshape(len(ids), -1), axis=1)
    return np.concatenate([packed, codes, tail[:, None].view(np.uint8)], axis=1)


def decode_rows(rows: NDArray[np.uint8], info: CacheInfo) -> SparseLogprobs:
    """Inverse of `encode_rows`, up to the codes' rounding. `chosen` is not kept: NaN."""
    count, id_bytes = len(rows), (info.k * info.id_bits + 7) // 8
    bits = np.unpackbits(rows[:, :id_bytes], axis=1)[:, : info.k * info.id_bits].reshape(count, info.k, info.id_bits)
    wide = np.zeros((count, info.k, 32), np.uint8)
    wide[:, :, 32 - info.id_bits :] = bits
    ids = np.packbits(wide, axis=2).view(">u4").reshape(count, info.k).astype(np.int32)
    codes = rows[:, id_bytes : id_bytes + info.k]
    tail = np.ascontiguousarray(rows[:, id_bytes + info.k :]).view(np.float16).reshape(count, 1).astype(np.float64)
    known = codes != _ABSENT
    logprobs = np.where(known, -_FLOOR * (codes / 254.0) ** 2, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        mass = np.log(np.exp(logprobs).sum(axis=1, keepdims=True))
        scaled = logprobs - mass + np.log1p(-np.exp(tail))
    top = np.where(known, scaled, -np.inf).astype(np.float32)
    return SparseLogprobs(np.full(count, np.nan, np.float32), top, np.where(known, ids, -1).astype(np.int32))


def write_cache(folder: Path, info: CacheInfo, examples: Iterable[tuple[str, SparseLogprobs]]) -> LogitCache:
    """Stream examples (id, targets) into a new cache and put it in place of `folder` once it is whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    index: list[list[Any]] = []
    shards: list[dict[str, Any]] = []
    limit = max(1, _SHARD_BYTES // info.row_bytes)
    offset = shard_start = 0
    pending: list[NDArray[np.uint8]] = []

    def flush() -> None:
        data = np.concatenate(pending).tobytes() if pending else b""
        name = f"shard-{len(shards):05d}.bin"
        atomic_write(partial / name, data)
        rows = len(data) // info.row_bytes
        shards.append({"file": name, "rows": rows, "sha256": hashlib.sha256(data).hexdigest()})
        pending.clear()

    for example_id, targets in examples:
        if pending and offset - shard_start + len(targets) > limit:
            flush()
            shard_start = offset
        index.append([example_id, offset, len(targets)])
        offset += len(targets)
        pending.append(encode_rows(targets, info))
    flush()
    packing = {"id_bits": info.id_bits, "row_bytes": info.row_bytes, "logprob": "-32*(c/254)^2, c uint8, 255 absent"}
    header = {
        "schema": SCHEMA,
        **asdict(info),
        "packing": packing | {"tail": "float16 log mass, little-endian"},
        "shards": shards,
        "examples": index,
    }
    atomic_write(partial / "header.json", json.dumps(header, separators=(",", ":")) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return LogitCache.open(folder)


class LogitCache:
    """A cache on disk. Examples never span two shards, so each is one slice of a memory map."""

    def __init__(
        self, info: CacheInfo, shards: list[NDArray[np.uint8]], index: dict[str, tuple[int, int, int]]
    ) -> None:
        self.info = info
        self._shards = shards
        self._index = index

    @classmethod
    def open(cls, folder: Path) -> LogitCache:
        """Open and verify: every shard is hashed once.

        Raises:
            BadInput: the header or a shard is missing, damaged or of another schema.
        """
        remedy = f"delete {folder} and run train again"
        try:
            header = json.loads((folder / "header.json").read_bytes())
            if header["schema"] != SCHEMA:
                raise BadInput(f"{folder}: schema {header['schema']}, this version reads {SCHEMA}; {remedy}")
            info = CacheInfo(**{name: header[name] for name in CacheInfo.__dataclass_fields__})
            shards = [_open_shard(folder / s["file"], s["rows"], info, s["sha256"], remedy) for s in header["shards"]]
            index = _locate(header["examples"], [s["rows"] for s in header["shards"]])
        except OSError as error:
            raise BadInput(f"{folder}: {error.filename} cannot be read ({error.strerror}); {remedy}") from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BadInput(f"{folder}/header.json: damaged ({error}); {remedy}") from None
        return cls(info, shards, index)

    def __len__(self) -> int:
        return len(self._index)

    def targets(self, example_id: str) -> SparseLogprobs:
        """The teacher's top-k of one example, (C, k)."""
        shard, start, length = self._index[example_id]
        return decode_rows(np.asarray(self._shards[shard][start : start + length]), self.info)


def _open_shard(path: Path, rows: int, info: CacheInfo, sha256: str, remedy: str) -> NDArray[np.uint8]:
    if path.stat().st_size != rows * info.row_bytes:
        raise BadInput(f"{path}: {path.stat().st_size} bytes, the header says {rows * info.row_bytes}; {remedy}")
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise BadInput(f"{path}: its checksum is not the one in header.json, the file is damaged; {remedy}")
    if rows == 0:
        return np.empty((0, info.row_bytes), np.uint8)
    return np.memmap(path, np.uint8, "r", shape=(rows, info.row_bytes))


def _locate(examples: list[list[Any]], rows: list[int]) -> dict[str, tuple[int, int, int]]:
    """Example id → (shard, row within it, length), from offsets over all shards."""
    starts = np.concatenate([[0], np.cumsum(rows)])
    index = {}
    for example_id, offset, length in examples:
        shard = min(int(np.searchsorted(starts, offset, side="right")) - 1, len(rows) - 1)
        if offset + length > starts[shard + 1]:
            raise ValueError(f"example {example_id} lies outside the shards")
        index[str(example_id)] = (shard, int(offset - starts[shard]), int(length))
    return index


def _fit(values: NDArray[Any], k: int, fill: float) -> NDArray[Any]:
    """The first k columns, padded with `fill` where there are fewer."""
    short = k - values.shape[1]
    return values[:, :k] if short <= 0 else np.pad(values, ((0, 0), (0, short)), constant_values=fill)
