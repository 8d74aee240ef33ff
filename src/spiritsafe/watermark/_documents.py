"""Documents to test, one after another: from text files, JSONL, Parquet and a stream, never all in memory."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from spiritsafe.errors import BadInput
from spiritsafe.watermark._prf import U32
from spiritsafe.watermark._rows import Row, jsonl_rows, parquet_rows, where_of

__all__ = ["Batch", "Document", "Documents", "Encode", "batch_encoder"]

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
"""Token ids of each text, without special tokens around it."""

_PIECE = 1 << 22  # bytes of a text that are encoded together
_BATCH_ROWS, _BATCH_CHARS = 256, 1 << 20
_TOGETHER_TOKENS, _TOGETHER_DOCUMENTS = 1 << 19, 4096
_COMPARED_ROWS = 200  # rows with text and tokens that are encoded again, to see whether the tokenizer is theirs
_IDS = 2**32
_BOM = b"\xef\xbb\xbf"
_KINDS = "give a text, JSONL or Parquet file, or - for stdin"


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A text as token ids.

    ids: (T,), the prompt's before `first` (context only), then the text's.
    text: as it was given; None if only ids were, or if nobody asked for it.
    """

    id: str
    ids: U32
    first: int
    text: str | None = None


class Documents:
    """Iterates over the documents of `sources`: paths, or "-" for stdin.

    A text file is one document. JSONL (.jsonl, .ndjson; stdin whose first line is a JSON object) and Parquet hold one a
    row: `tokens` (or `token_ids`) or `text` (or `completion`), `id` and `prompt_tokens` if there are any. Where a row
    has both, its tokens count. A row may be empty, a file may not.

    encode: for texts.  vocab_size: ids from here on are refused.  keep_text: documents keep their text, and without
    `encode` those given as text have no ids.  stdin: what "-" reads.

    Raises (while iterating):
        BadInput: a source is missing, empty, binary, not UTF-8 or malformed, a row is no document, an id is no token
            id, or there is text and no `encode`. Says where.
    """

    def __init__(
        self,
        sources: Sequence[str],
        encode: Encode | None = None,
        *,
        vocab_size: int | None = None,
        keep_text: bool = False,
        stdin: BinaryIO | None = None,
    ) -> None:
        self._sources, self._encode, self._keep_text, self._stdin = sources, encode, keep_text, stdin
        self._vocab_size = vocab_size
        self._compared = 0
        self.compared_pairs = 0
        """Pairs of neighbouring tokens in rows whose text was encoded again, and how many of them came back."""
        self.agreeing_pairs = 0

    def __iter__(self) -> Iterator[Document]:
        for source in self._sources:
            with _opened(source, self._stdin) as file:
                yield from self._read(source, file)

    def _read(self, source: str, file: BinaryIO) -> Iterator[Document]:
        suffix = Path(source).suffix.lower()
        if suffix in (".parquet", ".pq"):
            rows: Iterator[Row] = parquet_rows(source, file)
        else:
            head = _first_lines(file) if source == "-" else []
            if suffix in (".jsonl", ".ndjson") or (head and _is_object(head[-1])):
                rows = jsonl_rows(source, itertools.chain(head, file))
            else:
                yield self._text_file(source, b"".join(head), file)
                return
        empty = True
        for batch in _batches(rows):
            empty = False
            yield from self._of_rows(source, batch)
        if empty:
            raise BadInput(f"{source}: no document in it; give rows with text or tokens")

    def _text_file(self, source: str, head: bytes, file: BinaryIO) -> Document:
        pieces: list[U32] = []
        texts: list[str] = []
        blank = True
        for piece in _pieces(source, head, file):
            blank = blank and not piece.strip()
            if self._keep_text:
                texts.append(piece)
            if not (blank or (self._keep_text and self._encode is None)):
                pieces.append(self._encoded(source, [piece])[0])
        if blank:
            raise BadInput(f"{source}: empty; there is nothing to test")
        ids = np.concatenate([np.empty(0, np.uint32), *pieces])
        return Document(source, ids, 0, "".join(texts) if self._keep_text else None)

    def _of_rows(self, source: str, batch: Sequence[Row]) -> Iterator[Document]:
        texts = [row.text for row in batch if row.text is not None and row.tokens is None]
        wanted = self._encode is not None or not self._keep_text
        where = next((where_of(source, row) for row in batch if row.tokens is None), source)
        encoded = iter(self._encoded(where, texts) if texts and wanted else [np.empty(0, np.uint32)] * len(texts))
        for row in batch:
            ids = next(encoded) if row.tokens is None else self._ids(source, row, "tokens", row.tokens)
            if row.tokens is not None and row.text is not None:
                self._compare(row.text, ids)
            first = 0
            if row.prompt_tokens is not None:
                prompt = self._ids(source, row, "prompt_tokens", row.prompt_tokens)
                ids, first = np.concatenate([prompt, ids]), len(prompt)
            name = f"{source}:{row.number}" if row.id is None else row.id
            yield Document(name, ids, first, row.text if self._keep_text else None)

    def _encoded(self, where: str, texts: Sequence[str]) -> list[U32]:
        if self._encode is None:
            raise BadInput(f"{where}: is text; give the marking model's tokenizer with --tokenizer PATH")
        return [np.asarray(ids, np.uint32) for ids in self._encode(texts)]

    def _ids(self, source: str, row: Row, field: str, given: Any) -> U32:
        limit = _IDS if self._vocab_size is None else self._vocab_size
        if isinstance(given, np.ndarray) and np.issubdtype(given.dtype, np.integer):
            bad = np.flatnonzero((given < 0) | (given >= limit))
            at = int(bad[0]) if len(bad) else None
        elif isinstance(given, list):
            # min and max decide the usual case; `type`, because True is an int too
            fine = set(map(type, given)) <= {int} and (not given or (min(given) >= 0 and max(given) < limit))
            at = None if fine else next(i for i, x in enumerate(given) if type(x) is not int or not 0 <= x < limit)
        else:
            raise BadInput(f"{where_of(source, row)}: {field} is not a list of token ids")
        if at is None:
            return np.asarray(given, np.uint32)
        value = given[at].item() if isinstance(given, np.ndarray) else given[at]
        where = f"{where_of(source, row)}: {field}[{at}] is {value!r}"[:200]
        if type(value) is not int or value < 0 or self._vocab_size is None:
            raise BadInput(f"{where}, not a token id; ids are whole numbers from 0 to {limit - 1}")
        raise BadInput(f"{where}, outside the vocabulary of {limit} tokens; these ids are another tokenizer's")

    def _compare(self, text: str, ids: U32) -> None:
        """Encode a text again whose tokens were given: how many come out the same?"""
        if self._encode is None or self._compared >= _COMPARED_ROWS:
            return
        self._compared += 1
        given = _pairs(ids.tolist())
        self.compared_pairs += given.total()
        self.agreeing_pairs += (given & _pairs(self._encode([text])[0])).total()


def _pairs(ids: Sequence[int]) -> Counter[tuple[int, int]]:
    """Pairs, so that one token more does not put everything after it out of step."""
    return Counter(itertools.pairwise(ids))


class Batch:
    """Documents that wait to be read together."""

    def __init__(self) -> None:
        self._documents: list[Document] = []
        self._tokens = 0

    def add(self, document: Document) -> bool:
        """True if it is time to take them."""
        self._documents.append(document)
        self._tokens += len(document.ids)
        return len(self._documents) == _TOGETHER_DOCUMENTS or self._tokens >= _TOGETHER_TOKENS

    def take(self) -> list[Document]:
        taken, self._documents, self._tokens = self._documents, [], 0
        return taken


def batch_encoder(tokenizer: Any) -> Encode:
    """`encode` of a Hugging Face tokenizer, in batches where it is a fast one; no special tokens are added."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda texts: [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    backend.no_truncation()
    backend.no_padding()
    return lambda texts: [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


@contextmanager
def _opened(source: str, stdin: BinaryIO | None) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer if stdin is None else stdin
        return
    with ExitStack() as closing:
        try:
            file = closing.enter_context(Path(source).open("rb"))
        except FileNotFoundError:
            raise BadInput(f"{source}: no such file; {_KINDS}") from None
        except OSError as error:
            raise BadInput(f"{source}: cannot be read ({error.strerror}); {_KINDS}") from None
        yield file


def _pieces(source: str, head: bytes, file: BinaryIO) -> Iterator[str]:
    """A text in pieces that end before a line break or a space, where most tokenizers start afresh."""
    offset, pending, first = 0, head, True
    while True:
        chunk = file.read(_PIECE)
        if (at := (raw := pending + chunk).find(b"\0")) >= 0:
            raise BadInput(f"{source}: binary, not text (a zero byte at {offset + at}); {_KINDS}")
        cut = len(raw) if not chunk else max(raw.rfind(b"\n"), raw.rfind(b" "), 0)
        if chunk and not cut:  # no place to cut: cut between two characters
            cut = len(raw) - next((i for i in range(1, min(4, len(raw)) + 1) if raw[-i] & 0xC0 != 0x80), 0)
        try:
            text = raw[:cut].decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{source}: not UTF-8 at byte {offset + error.start}; save it as UTF-8") from None
        if text:
            yield text.removeprefix("\ufeff") if first else text
            first = False
        offset, pending = offset + cut, raw[cut:]
        if not chunk:
            return


def _first_lines(file: BinaryIO) -> list[bytes]:
    """Lines up to the first that is not blank."""
    lines = []
    for line in file:
        lines.append(line)
        if line.strip():
            break
    return lines


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line.removeprefix(_BOM)), dict)
    except orjson.JSONDecodeError:
        return False


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows to encode together; rows that have their tokens do not wait for others."""
    batch: list[Row] = []
    chars = 0
    for row in rows:
        batch.append(row)
        chars += len(row.text) if row.text is not None and row.tokens is None else 0
        if len(batch) >= _BATCH_ROWS or chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
