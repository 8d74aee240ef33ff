"""The teacher's marked texts, as a plan names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritsafe.audit.tests._committed import opened_lines
from spiritsafe.audit.tests._pairs import released_text
from spiritsafe.errors import BadInput
from spiritsafe.records import Message
from spiritsafe.tokens import prompt_ids

__all__ = ["Text", "Texts", "read_texts"]

_IDS = 2**31
_COLUMNS = ("prompt", "messages", "completion", "text", "tokens", "token_ids", "prompt_tokens")


@dataclass(frozen=True, slots=True)
class Text:
    """A reply as the teacher's token ids, after its prompt's. id: its place in the file, from 1.

    again: its ids are its text tokenised again, not those that were drawn.
    """

    id: str
    messages: tuple[Message, ...]
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    again: bool


@dataclass(frozen=True, slots=True)
class Texts:
    """quoting: how many were left out because their prompt holds an earlier reply, which may be marked too.
    wordless: how many released replies of a twins export were left out because there is no text in them."""

    texts: tuple[Text, ...]
    quoting: int
    wordless: int = 0


def read_texts(path: Path, tokenizer: Callable[[], Any], most: int | None) -> Texts:
    """The first `most` texts of a JSONL or Parquet file, in its order.

    A row has `completion` (or `text`) and may have the `prompt` (text or messages) or `messages` that it answers; best
    with the ids that were drawn, `tokens` or `token_ids`, and `prompt_tokens`, for what is tokenised again is not
    always the same. A row of `evidence twins export` stands for the reply that was released.

    tokenizer: the teacher's, asked for when a row needs it.

    Raises:
        BadInput: it cannot be read, a row is none of that, or there is none; says where.
    """
    texts, quoting, wordless = list[Text](), 0, 0
    for number, row in _rows(path):
        if most is not None and len(texts) == most:
            break
        where = f"{path}, row {number}"
        if "twin_commit" in row:
            released = released_text(row)
            if released is None:
                wordless += 1
                continue
            row = released
        messages = _messages(where, row)
        if any(message.role == "assistant" for message in messages):
            quoting += 1
            continue
        ids, again = _ids(where, row, ("tokens", "token_ids")), False
        if ids is None:
            ids, again = tuple(tokenizer().encode(_completion(where, row), add_special_tokens=False)), True
        prompt = _ids(where, row, ("prompt_tokens",))
        if prompt is None:
            prompt = tuple(prompt_ids(tokenizer(), messages)) if messages else ()
        texts.append(Text(str(number), messages, prompt, ids, again))
    if not texts:
        raise BadInput(f"{path}: no text in it that answers a first question; give rows with a completion")
    return Texts(tuple(texts), quoting, wordless)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if path.suffix not in (".parquet", ".pq"):
        yield from opened_lines(path)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:120]})") from None


def _messages(where: str, row: Mapping[str, Any]) -> tuple[Message, ...]:
    """What a row answers; nothing where it does not say."""
    given = row.get("prompt")
    if given is None:
        given = row.get("messages")
    if given is None:
        return ()
    turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(turns, list) or not all(_is_message(turn) for turn in turns):
        raise BadInput(f"{where}: prompt has to be text or a list of {{role, content}}")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _completion(where: str, row: Mapping[str, Any]) -> str:
    given = row.get("completion")
    if given is None:
        given = row.get("text")
    if isinstance(given, list) and len(given) == 1 and _is_message(given[0]):
        given = given[0]["content"]
    if not isinstance(given, str):
        raise BadInput(f"{where}: no completion in it; give its text or its token ids")
    return given


def _ids(where: str, row: Mapping[str, Any], names: Sequence[str]) -> tuple[int, ...] | None:
    for name in names:
        if (given := row.get(name)) is not None:
            if not isinstance(given, list) or not all(type(x) is int and 0 <= x < _IDS for x in given):
                raise BadInput(f"{where}: {name} is not a list of token ids")
            return tuple(given)
    return None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
