"""What `watermark trace` and `attack` read: text files, JSONL or Parquet rows with `text` or `tokens`, stdin."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spiritsafe.keys import KeySet

__all__ = ["Input", "open_tokenizer", "read_inputs"]

_LARGEST_ID = 2**32 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """One document. ids: uint32, the prompt's first; those before `first` are context only. text: as it was given."""

    id: str
    ids: NDArray[Any]
    first: int
    text: str | None


def open_tokenizer(source: str, keys: KeySet | None = None) -> Any:
    """A tokenizer; says so on stderr if it is not the one that the key set marks with."""
    from spiritsafe.teachers import load_tokenizer
    from spiritsafe.tokens import tokenizer_hash

    tokenizer = load_tokenizer(source)
    if (
        keys is not None
        and keys.tokenizer_hash is not None
        and keys.tokenizer_hash != (got := tokenizer_hash(tokenizer))
    ):
        print(
            f"warning: {source} is another tokenizer ({got[:12]}…) than {keys.id} marks with"
            f" ({keys.tokenizer_hash[:12]}…); marks will not be found",
            file=sys.stderr,
        )
    return tokenizer


def read_inputs(sources: Sequence[str], tokenizer: Any, *, encode: bool = True) -> Iterator[Input]:
    """Every document of the sources, in order. Without `encode`, those given as text have no ids.

    Raises:
        BadInput: a source cannot be read, a row is no document, or a text comes without a tokenizer.
    """
    for source in sources:
        if source.endswith(".parquet"):
            rows = _parquet(Path(source))
        else:
            lines = _lines(source)
            head = next(lines, b"") if source == "-" else b""
            if source.endswith((".jsonl", ".ndjson")) or _is_json(head):
                rows = _jsonl(source, itertools.chain([head] if head else [], lines))
            else:
                text = _decoded(source, head + b"".join(lines), 0)
                rows = iter([(source, source, {"text": text})])
        for where, name, row in rows:
            yield _input(where, name, row, tokenizer, encode)


def _input(where: str, name: str, row: dict[str, Any], tokenizer: Any, encode: bool) -> Input:
    import numpy as np

    text, tokens = row.get("text"), row.get("tokens")
    prompt = row.get("prompt_tokens")
    if (text is None) == (tokens is None):
        raise BadInput(f"{where}: give a document either as text or as tokens")
    if text is not None:
        if not isinstance(text, str):
            raise BadInput(f"{where}: text is not a string")
        if encode and tokenizer is None:
            raise BadInput(f"{where}: a text; give the marking model's --tokenizer")
        tokens = tokenizer.encode(text, add_special_tokens=False) if encode else []
    context = _ids(where, "prompt_tokens", [] if prompt is None else prompt)
    ids = np.array(context + _ids(where, "tokens", tokens), np.uint32)
    return Input(str(row.get("id") or name), ids, len(context), text)


def _ids(where: str, field: str, given: Any) -> list[int]:
    good = isinstance(given, list) and all(type(i) is int and 0 <= i <= _LARGEST_ID for i in given)
    if not good:
        raise BadInput(f"{where}: {field} is not a list of token ids")
    return list(given)


def _lines(source: str) -> Iterator[bytes]:
    """The source's lines as they are read, so that a corpus need not fit into memory."""
    try:
        with sys.stdin.buffer if source == "-" else Path(source).open("rb") as file:
            yield from file
    except FileNotFoundError:
        raise BadInput(f"{source}: no such file; give a text, JSONL or Parquet file, or - for stdin") from None
    except OSError as error:
        raise BadInput(f"{source}: cannot be read ({error.strerror})") from None


def _decoded(source: str, raw: bytes, offset: int) -> str:
    if b"\0" in raw:
        raise BadInput(f"{source}: binary, not text; give a text, JSONL or Parquet file")
    try:
        return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{source}: not UTF-8 at byte {offset + error.start}; save it as UTF-8") from None


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _jsonl(source: str, lines: Iterable[bytes]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    offset = 0
    for number, raw in enumerate(lines, 1):
        line = _decoded(source, raw, offset)
        offset += len(raw)
        if not line.strip():
            continue
        where = f"{source}: line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise BadInput(f"{where}: not JSON; write one object a line with text or tokens") from None
        if not isinstance(row, dict):
            raise BadInput(f"{where}: not an object; write one object a line with text or tokens")
        yield where, f"{source}:{number}", row


def _parquet(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; give a text, JSONL or Parquet file, or - for stdin") from None
    except (OSError, pa.ArrowInvalid):
        raise BadInput(f"{path}: not a readable Parquet file") from None
    columns = [name for name in ("id", "text", "tokens", "prompt_tokens") if name in file.schema_arrow.names]
    number = 0
    for batch in file.iter_batches(batch_size=1024, columns=columns):
        for row in batch.to_pylist():
            number += 1
            yield f"{path}: row {number}", f"{path}:{number}", row
