"""Documents from every kind of source, streamed as they are in memory; whatever is wrong is said in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe.errors import BadInput
from spiritsafe.records import Message
from spiritsafe.watermark import _documents
from spiritsafe.watermark._documents import Document, Documents, batch_encoder
from train_kit import tiny_tokenizer


def code_points(texts: list[str]) -> list[list[int]]:
    """A tokenizer whose pieces add up wherever they are cut."""
    return [[ord(c) for c in text] for text in texts]


def read(path: Path | str, **options: object) -> list[Document]:
    return list(Documents([str(path)], code_points, **options))  # type: ignore[arg-type]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfpot \xc3\xa9til\n")
    (document,) = read(path, keep_text=True)
    assert (document.id, document.first, document.text) == (str(path), 0, "pot étil\n")
    assert document.ids.dtype == np.uint32
    assert document.ids.tolist() == [ord(c) for c in "pot étil\n"]
    assert read(path)[0].text is None


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), st.integers(1, 9))
def test_pieces_add_up_to_the_text(text: str, piece: int) -> None:
    """Cut anywhere, four-byte characters included."""
    text = "x" + text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_documents, "_PIECE", piece)
        raw = io.BytesIO(text.encode())
        assert "".join(_documents._pieces("t", b"", raw)) == text


def test_rows_of_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"text": "ab", "id": "first", "other": {"ignored": 1}},
        {"tokens": [5, 6], "prompt_tokens": [1, 2, 3]},
        {"text": "xy", "tokens": [7], "id": 12},
        {"text": ""},
        {"completion": [{"role": "assistant", "content": "z"}]},
    ]
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    found = [(d.id, d.ids.tolist(), d.first) for d in read(path)]
    assert found == [
        ("first", [97, 98], 0),
        (f"{path}:3", [1, 2, 3, 5, 6], 3),
        ("12", [7], 0),
        (f"{path}:7", [], 0),
        (f"{path}:9", [122], 0),
    ]


def test_rows_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    tokens = pa.array([[1, 2], None, [], [3]], pa.list_(pa.int32()))
    table = pa.table({"tokens": tokens, "text": [None, "ab", None, "cd"], "id": ["a", "b", "c", None]})
    pq.write_table(table, path, row_group_size=2)
    found = [(d.id, d.ids.tolist()) for d in read(path)]
    assert found == [("a", [1, 2]), ("b", [97, 98]), ("c", []), (f"{path}:4", [3])]


def test_collected_exchanges_are_documents(tmp_path: Path) -> None:
    from spiritsafe.exchanges import _schema

    path = tmp_path / "exchanges.parquet"
    said = [{"role": m.role, "content": m.content} for m in (Message("assistant", "copper"),)]
    rows = [{"id": "x", "completion": said, "token_ids": [4, 5]}, {"id": "y", "completion": said}]
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), path)
    assert [(d.id, d.ids.tolist()) for d in read(path)] == [("x", [4, 5]), ("y", [ord(c) for c in "copper"])]


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (b'\n{"tokens": [3]}\n{"tokens": [4]}\n', [[3], [4]]),
        (b"\n{not json\n", [[ord(c) for c in "\n{not json\n"]]),
        (b"[1]\n", [[ord(c) for c in "[1]\n"]]),
    ],
)
def test_stdin_is_rows_if_its_first_line_is(given: bytes, ids: list[list[int]]) -> None:
    assert [d.ids.tolist() for d in read("-", stdin=io.BytesIO(given))] == ids


def test_a_stream_is_read_as_it_comes() -> None:
    """The first documents are there before the last rows are."""
    taken = 0

    class Slow(io.RawIOBase):
        def readline(self, size: int | None = -1, /) -> bytes:
            nonlocal taken
            taken += 1
            return b'{"tokens": [1]}\n' if taken < 100_000 else b""

    next(iter(Documents(["-"], stdin=Slow())))  # type: ignore[arg-type]
    assert taken < 1000


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\t\n", "empty"),
        ("a.txt", b"abc\0def", "zero byte at 3"),
        ("a.txt", b"ab \xff cd", "not UTF-8 at byte 3"),
        ("a.txt", b"ends within a character \xe2\x82", "not UTF-8 at byte 24"),
        ("a.jsonl", b"", "no document"),
        ("a.jsonl", b"\n \n", "no document"),
        ("a.jsonl", b'{"text": "a"}\n{"text": }\n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2 is not UTF-8 at byte 24"),
        ("a.jsonl", b'{"text": "a"}\n\0\0\n', "line 2 is binary"),
        ("a.jsonl", b"[1, 2]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b'{"body": "a"}\n', "neither text nor tokens"),
        ("a.jsonl", b'{"text": 5}\n', "text is no text"),
        ("a.jsonl", b'{"tokens": "5"}\n', "tokens is not a list"),
        ("a.jsonl", b'{"tokens": [1, -2]}\n', "tokens[1] is -2"),
        ("a.jsonl", b'{"tokens": [1, true]}\n', "tokens[1] is True"),
        ("a.jsonl", b'{"tokens": [1, 2.5]}\n', "tokens[1] is 2.5"),
        ("a.jsonl", b'{"tokens": [1, null]}\n', "tokens[1] is None"),
        ("a.jsonl", b'{"tokens": [4294967296]}\n', "tokens[0] is 4294967296"),
        ("a.jsonl", b'{"tokens": [1], "prompt_tokens": [-1]}\n', "prompt_tokens[0] is -1"),
        ("a.parquet", b"PAR1 not really", "not a readable Parquet file"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput) as failed:
        read(path)
    message = str(failed.value)
    assert says in message
    assert message.startswith(str(path))
    assert "\n" not in message


def test_parquet_without_a_column_to_read_or_with_bad_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"]}), path)
    with pytest.raises(BadInput, match="no column text"):
        read(path)
    pq.write_table(pa.table({"tokens": [[1, 2], [3, 99]]}), path)
    with pytest.raises(BadInput, match=r"row 2: tokens\[1\] is 99, outside the vocabulary of 50"):
        read(path, vocab_size=50)
    pq.write_table(pa.table({"tokens": pa.array([[1, None]], pa.list_(pa.int64()))}), path)
    with pytest.raises(BadInput, match=r"tokens\[1\] is None"):
        read(path)


def test_no_such_file_a_folder_and_text_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read(tmp_path / "none.txt")
    with pytest.raises(BadInput, match="cannot be read"):
        read(tmp_path)
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": [1]}\n{"text": "a"}\n')
    with pytest.raises(BadInput, match="line 2: is text; give the marking model's tokenizer"):
        list(Documents([str(path)]))
    (kept,) = list(Documents([str(path)], keep_text=True))[1:]
    assert (kept.text, len(kept.ids)) == ("a", 0)


def test_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": [1, 49, 50]}\n')
    with pytest.raises(BadInput, match=r"tokens\[2\] is 50, outside the vocabulary of 50 tokens"):
        read(path, vocab_size=50)
    assert read(path, vocab_size=51)[0].ids.tolist() == [1, 49, 50]


def test_rows_with_text_and_tokens_show_whether_the_tokenizer_is_theirs(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "abcd", "tokens": [9, 97, 98, 99, 9]}\n{"tokens": [1]}\n')
    documents = Documents([str(path)], code_points)
    assert [d.ids.tolist() for d in documents] == [[9, 97, 98, 99, 9], [1]]
    assert (documents.agreeing_pairs, documents.compared_pairs) == (2, 4)


def test_batches_encode_as_one_text_at_a_time_does(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    texts = ["the copper still", "", "été \n\n  <|im_end|> x", "a" * 300]
    encoded = batch_encoder(tokenizer)(texts)
    assert [list(ids) for ids in encoded] == [tokenizer.encode(text, add_special_tokens=False) for text in texts]
