"""Opened twins, each held against the ledger's row that commits to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritsafe.audit.tests._committed import Committed, TwinRow, Window, opened_lines
from spiritsafe.errors import BadInput
from spiritsafe.ledger import verify_twin
from spiritsafe.records import Message, Prompt

__all__ = ["Pair", "Pairs", "read_pairs", "released_text"]


@dataclass(frozen=True, slots=True)
class Pair:
    """An opened pair.  replies: the first and the second.  released: which of them went out, 0 or 1."""

    request_id: str
    prompt: Prompt
    replies: tuple[str, str]
    released: int


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs a plan names. pairs: by request id, in the ledger's order.

    named: how many commitments the plan's words name; None where there is no ledger.  opened: how many of them are
    opened.  unusable: opened, but nothing to compare in them as text.  others: opened, and not named by the plan.
    """

    pairs: Mapping[str, Pair]
    named: int | None
    opened: int
    unusable: int
    others: int

    @property
    def missing(self) -> int:
        """Named, and not opened."""
        return 0 if self.named is None else self.named - self.opened


def read_pairs(path: Path, ledger: Committed | None, window: Window, account: str | None, model: str | None) -> Pairs:
    """The pairs of an export that the plan names, verified. With a ledger its rows say what a pair's account, model
    and time are; without one, the export.

    Raises:
        BadInput: a line is no pair, is not what was committed to, or is there twice.
    """
    rows = None if ledger is None else {row.seq: row for row in ledger.twins}
    found: dict[str, tuple[int, Pair | None]] = {}
    opened = others = 0
    for number, line in opened_lines(path):
        where = f"{path}, line {number}"
        row = _committed(where, line, rows)
        if row.request_id in found:
            raise BadInput(f"{where}: the pair of {row.request_id[:80]} is there twice; export again")
        wanted = _names(row, window, account, model)
        opened += wanted
        others += not wanted
        found[row.request_id] = (row.seq, _pair(row.request_id, line) if wanted else None)
    usable = sorted((seq, pair.request_id, pair) for seq, pair in found.values() if pair is not None)
    named = None if ledger is None else sum(_names(row, window, account, model) for row in ledger.twins)
    return Pairs({key: pair for _, key, pair in usable}, named, opened, opened - len(usable), others)


def released_text(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """The reply of an opened pair that went out, as a row of texts: `messages`, `completion`; None if it is no text."""
    prompt, coin = _prompt(line.get("request")), line.get("coin")
    said = _text(line.get(("first", "second")[coin])) if coin in (0, 1) else None
    if prompt is None or not said:
        return None
    return {"messages": [{"role": m.role, "content": m.content} for m in prompt.messages], "completion": said}


def _names(row: TwinRow, window: Window, account: str | None, model: str | None) -> bool:
    return window.holds(row.ts) and account in (None, row.account) and model in (None, row.model)


def _committed(where: str, line: Mapping[str, Any], rows: Mapping[int, TwinRow] | None) -> TwinRow:
    """The ledger's row that a line is opened against, or its own claim of it."""
    seq, claimed = line.get("seq"), line.get("request_id")
    if type(seq) is not int or not isinstance(claimed, str):
        raise BadInput(f"{where}: not an opened pair; give what `evidence twins export` wrote")
    if rows is not None:
        row = rows.get(seq)
        if row is None or row.request_id != claimed:
            raise BadInput(f"{where}: row {seq} of the ledger does not commit to a pair of {claimed[:80]}")
    else:
        ts, commit = line.get("created"), line.get("twin_commit")
        if type(ts) not in (int, float) or not isinstance(commit, str):
            raise BadInput(f"{where}: not an opened pair; give what `evidence twins export` wrote")
        row = TwinRow(seq, float(str(ts)), claimed, str(line.get("account")), str(line.get("model")), commit)
    if not verify_twin(line, row.commit):
        raise BadInput(f"{where}: the pair of {claimed[:80]} is not what was committed to: it was changed since")
    return row


def _pair(request_id: str, line: Mapping[str, Any]) -> Pair | None:
    """None if it cannot be put to a suspect as text, or its texts are the same: neither depends on the coin."""
    prompt = _prompt(line["request"])
    first, second = _text(line["first"]), _text(line["second"])
    if prompt is None or not first or not second or first == second:
        return None
    return Pair(request_id, prompt, (first, second), int(line["coin"]))


def _prompt(request: Any) -> Prompt | None:
    """Chat messages as they are; a completion's prompt as one user turn. None for token ids and images."""
    if not isinstance(request, Mapping):
        return None
    messages = request.get("messages")
    if messages is None:
        prompt = request.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            (prompt,) = prompt
        return Prompt((Message("user", prompt),)) if isinstance(prompt, str) and prompt else None
    if not isinstance(messages, list) or not messages:
        return None
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        content = None if role is None else _content(message.get("content"))
        if not isinstance(role, str) or content is None:
            return None
        turns.append(Message("system" if role == "developer" else role, content))
    return Prompt(tuple(turns))


def _content(content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        return None
    texts = [part.get("text") for part in content if isinstance(part, Mapping)]
    said = [text for text in texts if isinstance(text, str)]
    return "".join(said) if len(said) == len(content) else None


def _text(reply: Any) -> str | None:
    """What the only choice says; reasoning that is shown apart is left out."""
    try:
        (choice,) = reply["choices"]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
    except (KeyError, TypeError, ValueError):
        return None
    return text if isinstance(text, str) else None
