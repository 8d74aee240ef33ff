"""Replies to prompts: those in an input file, and those in a transcript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from spiritsafe.audit._types import Item, Record, Suspect
from spiritsafe.audit.tests._answers import answers
from spiritsafe.collect._jobs import tokens_bound
from spiritsafe.errors import BadInput
from spiritsafe.records import Message, Prompt, Request, Sampling

__all__ = ["answered", "complete_each", "item_of", "read_replies"]

_LONGEST_LINE = 4 << 20


def read_replies(path: Path) -> dict[Prompt, list[str]]:
    """JSONL of {"prompt", "completion"}: the completions of each prompt, in the order of the file.

    prompt: text, or a list of {role, content} (also under `messages`).  completion: text, or one such message.

    Raises:
        BadInput: missing, empty, not JSONL, or a row that is no prompt with a completion; says where.
    """
    replies: dict[Prompt, list[str]] = {}
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if len(line) > _LONGEST_LINE:
                    raise BadInput(f"{path}:{number}: a line of more than {_LONGEST_LINE >> 20} MiB; split the row")
                if line.strip():
                    prompt, completion = _row(line, f"{path}:{number}")
                    replies.setdefault(prompt, []).append(completion)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a JSONL file") from None
    if not replies:
        raise BadInput(f'{path}: no replies in it; give JSONL of {{"prompt", "completion"}}')
    return replies


def item_of(id: str, prompt: Prompt, sampling: Sampling, **asked: Any) -> Item:
    """A prompt as a question to a suspect."""
    tokens_in, tokens_out = tokens_bound(Request(prompt, sampling))
    messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
    return Item(id, {"messages": messages, **asked}, tokens_in, tokens_out)


async def complete_each(suspect: Suspect, items: Sequence[Item], sampling: Sampling) -> list[Mapping[str, Any]]:
    """One reply to each item, as the transcript has it."""
    import asyncio

    async def one(item: Item) -> Mapping[str, Any]:
        prompt = Prompt(tuple(Message(m["role"], m["content"]) for m in item.asked["messages"]))
        (reply,) = await suspect.complete(prompt, sampling)
        return {"text": reply.text}

    return list(await asyncio.gather(*map(one, items)))


def answered(records: Sequence[Record], items: Sequence[Item], test: str) -> dict[str, str]:
    """The reply to each item of this test that has one. The last record of an item counts.

    Raises:
        BadInput: a record of an item that the plan does not have, asked otherwise than planned, or without a text.
    """
    planned = {item.id: item for item in items}
    last = answers(records, test, planned.keys())
    for record in records:
        if record.test == test and dict(record.asked) != dict(planned[record.item].asked):
            raise BadInput(f"transcript of {test}: item {record.item} was asked otherwise than planned")
    replies = {}
    for item, got in last.items():
        if got is not None:
            text = got.get("text")
            if not isinstance(text, str):
                raise BadInput(f"transcript of {test}: item {item}: its answer has no text")
            replies[item] = text
    return replies


def _row(line: bytes, where: str) -> tuple[Prompt, str]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{where}: not valid JSON ({error}); a JSONL file has one JSON object a line") from None
    if not isinstance(row, dict):
        raise BadInput(f"{where}: holds a {type(row).__name__}; a JSONL file has one JSON object a line")
    prompt, completion = row.get("prompt", row.get("messages")), row.get("completion")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if isinstance(completion, list) and len(completion) == 1 and _is_message(completion[0]):
        completion = completion[0]["content"]
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise BadInput(f"{where}: prompt has to be text or a list of {{role, content}}")
    if not isinstance(completion, str):
        raise BadInput(f"{where}: completion has to be text")
    return Prompt(tuple(Message(m["role"], m["content"]) for m in messages)), completion


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
