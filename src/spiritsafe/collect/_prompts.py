"""Prompts: from a file, a Hugging Face dataset folder, or Python's own standard library."""

from __future__ import annotations

import csv
import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field, model_validator

from spiritsafe.config import StrictModel
from spiritsafe.errors import BadInput
from spiritsafe.progress import Progress, Silent
from spiritsafe.records import Message, Prompt

__all__ = ["PromptsConfig", "assign_splits", "load_prompts"]

Split = Literal["train", "holdout"]
Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, for error messages, and the row."""

_ROLES = {"system", "developer", "user", "assistant", "tool"}


class PromptsConfig(StrictModel):
    """Where prompts come from.

    path: JSONL, CSV, TSV, Parquet, plain text (a prompt a line), or a folder that `datasets` can load from disk.
    column: strings, or conversations (lists of {role, content}) that end with the user's turn.
    source: `python-stdlib`, thousands of short questions about the running Python's standard library.
    limit: at most so many prompts; a random choice, the same for the same seed.
    system: a system message put before every prompt.
    """

    path: Path | None = None
    column: str = "prompt"
    source: Literal["python-stdlib"] | None = None
    limit: int | None = Field(default=None, ge=1)
    system: str | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _one_place(self) -> PromptsConfig:
        if (self.path is None) == (self.source is None):
            raise ValueError("give exactly one of path (a file) and source (python-stdlib)")
        return self


def load_prompts(config: PromptsConfig, *, progress: Progress | None = None) -> list[Prompt]:
    """All prompts, exact duplicates collapsed (their number is reported), in the order of the file.

    Raises:
        BadInput: file missing, empty or malformed, column missing, or a value of the wrong type; names file, line
            and column.
    """
    if config.path is not None:
        rows = _read(config.path, config.column)
        prompts = [_prompt(value, config, where) for where, value in rows]
        if not prompts:
            raise BadInput(f"{config.path}: has no prompts; put at least one row in it")
    else:
        from spiritsafe.collect._stdlib import stdlib_questions

        questions = stdlib_questions(config.limit, config.seed)
        prompts = [_prompt(question, config, "python-stdlib") for question in questions]
    unique = list({prompt.id: prompt for prompt in prompts}.values())
    if (collapsed := len(prompts) - len(unique)) > 0:
        (progress or Silent()).say(f"prompts: {collapsed} exact duplicates of {len(prompts)} prompts collapsed")
    if config.limit is not None and len(unique) > config.limit:
        chosen = set(sorted((p.id for p in unique), key=lambda i: _rank(i, config.seed))[: config.limit])
        unique = [prompt for prompt in unique if prompt.id in chosen]
    return unique


def assign_splits(prompts: Sequence[Prompt], fraction: float, seed: int) -> dict[str, Split]:
    """Prompt id → split. The `fraction` with the lowest seeded hashes are held out, whatever their order; at least one
    if `fraction` > 0 and there are two or more prompts, and never all of them."""
    ids = sorted({p.id for p in prompts}, key=lambda i: _rank(i, seed))
    count = round(fraction * len(ids))
    if fraction > 0:
        count = max(count, 1)
    count = min(count, len(ids) - 1)
    return {prompt_id: "holdout" if rank < count else "train" for rank, prompt_id in enumerate(ids)}


def _rank(prompt_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()


def _prompt(value: Any, config: PromptsConfig, where: str) -> Prompt:
    messages: tuple[Message, ...]
    if isinstance(value, str):
        if not value.strip():
            raise BadInput(f"{where}: column {config.column} is empty; remove the row or fill it")
        messages = (Message("user", value),)
    else:
        messages = tuple(_message(m, where, config.column) for m in _as_list(value, where, config.column))
        if messages[-1].role not in ("user", "tool"):
            said = messages[-1].role
            raise BadInput(
                f"{where}: column {config.column} ends with the {said}'s turn; a prompt ends with the user's"
            )
    if config.system is not None:
        messages = (Message("system", config.system), *(m for m in messages if m.role != "system"))
    return Prompt(messages)


def _as_list(value: Any, where: str, column: str) -> Iterable[Any]:
    if isinstance(value, Mapping) or not isinstance(value, Iterable) or not (items := list(value)):
        got = "an empty list" if isinstance(value, list) else type(value).__name__
        raise BadInput(f"{where}: column {column} holds {got}; it must be text or a list of {{role, content}}")
    return items


def _message(value: Any, where: str, column: str) -> Message:
    role = value.get("role") if isinstance(value, Mapping) else None
    content = value.get("content") if isinstance(value, Mapping) else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadInput(f"{where}: column {column} holds a message without text in role and content")
    if role not in _ROLES:
        raise BadInput(
            f"{where}: column {column} has a message of role {role!r}; roles are {', '.join(sorted(_ROLES))}"
        )
    return Message(role, content)


# ── Files ────────────────────────────────────────────────────────────────────────────────────────


def _read(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    """Where each value stands, and the value."""
    if not path.exists():
        raise BadInput(f"{path}: no such file; give the path of a JSONL, CSV, Parquet or text file in prompts.path")
    if path.is_dir():
        rows = _dataset_rows(path, column)
    elif path.stat().st_size == 0:
        raise BadInput(f"{path}: is empty; put at least one prompt in it")
    else:
        kind = path.suffix.lower()
        if kind == ".parquet":
            rows = _parquet_rows(path, column)
        elif kind in (".csv", ".tsv"):
            rows = _csv_rows(path, "\t" if kind == ".tsv" else ",")
        elif kind == ".txt":
            yield from ((f"{path}:{n}", line) for n, line in _lines(path))
            return
        else:
            rows = _jsonl_rows(path)
    for where, row in rows:
        if column not in row or row[column] is None:
            raise BadInput(f"{where}: {_no_column(column, list(row))}")
        yield where, row[column]


def _no_column(column: str, columns: list[str]) -> str:
    near = difflib.get_close_matches(column, columns, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"no column {column}; columns here: {', '.join(columns) or 'none'}{hint} (set prompts.column)"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-blank lines with their numbers. Split on newlines only: U+2028 may stand inside JSON."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                raise BadInput(f"{path}:{number}: not UTF-8 text; save the file as UTF-8") from None
            if line:
                yield number, line


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BadInput(f"{where}: not valid JSON ({error}); a JSONL file has one JSON object a line") from None
        if not isinstance(row, dict):
            raise BadInput(f"{where}: holds a {type(row).__name__}; a JSONL file has one JSON object a line")
        yield where, row


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**24)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, restkey="", strict=True)
        try:
            for row in reader:
                if "" in row:
                    raise BadInput(f"{path}:{reader.line_num}: has more fields than the header; quote the commas")
                yield f"{path}:{reader.line_num}", row
        except csv.Error as error:
            raise BadInput(f"{path}:{reader.reader.line_num}: not valid CSV ({error})") from None
        except UnicodeDecodeError:
            raise BadInput(f"{path}:{reader.line_num + 1}: not UTF-8 text; save the file as UTF-8") from None


def _parquet_rows(path: Path, column: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path}: not a readable Parquet file ({error})") from None
    with file:
        names = list(file.schema_arrow.names)
        if column not in names:
            raise BadInput(f"{path}: {_no_column(column, names)}")
        row_number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for row in batch.to_pylist():
                row_number += 1
                yield f"{path}: row {row_number}", row


def _dataset_rows(path: Path, column: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError:
        raise BadInput(f"{path}: is a folder; `pip install datasets` to read Hugging Face datasets") from None
    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, OSError) as error:
        raise BadInput(f"{path}: not a dataset saved with `save_to_disk` ({' '.join(str(error).split())})") from None
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            raise BadInput(f"{path}: has splits {', '.join(loaded)} but no train; give the folder of one split")
        loaded = loaded["train"]
    if column not in loaded.column_names:
        raise BadInput(f"{path}: {_no_column(column, loaded.column_names)}")
    for number, row in enumerate(loaded.select_columns([column]), 1):
        yield f"{path}: row {number}", row
