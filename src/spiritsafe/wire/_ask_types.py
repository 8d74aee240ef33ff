"""A request as the gateway sees it: what it costs at worst, what it asks to see, and the body to forward."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

import orjson

__all__ = ["Ask", "AskKind", "FieldError", "json_size", "text_size"]

AskKind = Literal["chat", "completions", "responses", "embeddings"]

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_ASCII = bytes(range(128))
_QUOTED = frozenset({"function", "tool"})


class FieldError(Exception):
    """A field is not as it must be. Whoever holds the field adds its name to `path` as the error passes, so that paths
    are built only when something is wrong."""

    def __init__(self, said: str, path: str = "", *, before: str = "", code: str | None = None) -> None:
        super().__init__(said)
        self.said, self.path, self.before, self.code = said, path, before, code

    def within(self, name: str) -> FieldError:
        """The same error, seen from outside the field `name`."""
        self.path = f"{name}{'' if not self.path or self.path.startswith('[') else '.'}{self.path}"
        return self

    @property
    def message(self) -> str:
        return f"{self.before}{self.path or 'the body'} {self.said}"


@dataclass(slots=True)
class Ask:
    """One request, checked. Forward `body` (serialised anew), never the bytes that came: of two equal keys the last
    one counts here, and another parser might take the first.

    include_usage: the client asked for a stream's usage.  n: replies to each prompt; prompts: how many prompts.
    max_tokens: the client's own limit for one reply; None where it set none.
    top_logprobs: alternatives asked for per token; 0: the chosen token only; None: no log-probabilities.
    has_logit_bias: something in the request moves probabilities: `logit_bias`, allowed tokens, forbidden words.
    messages, turns: of the conversation, and those by the user.  pieces: what a chat template may wrap in tokens of
        its own: messages, their parts, tools, tool calls; for completions and embeddings, prompts.
    text_bytes: no fewer than the bytes a template may write of everything that may become prompt tokens.
        json_bytes: the part of it that is JSON (tools, schemas, tool calls).  quoted_bytes: the part that is text some
        templates write as JSON strings (results of tools).  token_ids: prompt tokens given as ids, a byte each.
    predicted_bytes: of a prediction, whose tokens may be billed as output.
    said: (role, text) of all texts, in order.  ids: the first prompt given as token ids.
    allowed: unknown fields that the operator lets through; they count as prompt.
    """

    kind: AskKind
    body: dict[str, Any]
    model: str = ""
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    prompts: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    top_logprobs: int | None = None
    has_logit_bias: bool = False
    end_user: str | None = None
    messages: int = 0
    turns: int = 0
    pieces: int = 0
    text_bytes: int = 0
    json_bytes: int = 0
    quoted_bytes: int = 0
    token_ids: int = 0
    predicted_bytes: int = 0
    images: int = 0
    said: list[tuple[str, str]] = field(default_factory=list)
    ids: list[int] | None = None
    allowed: Collection[str] = ()

    def texts(self, *, quoted: bool = True) -> Iterator[str]:
        """Every text that may become prompt tokens, in order; not what is given as JSON or as token ids.

        quoted: with those that some templates write as JSON strings.
        """
        return (text for role, text in self.said if quoted or role not in _QUOTED)

    def add_text(self, role: str, text: str) -> None:
        """Count a text."""
        self.said.append((role, text))
        if role in _QUOTED:
            size = json_size(text)
            self.quoted_bytes += size
        else:
            size = len(text) if text.isascii() else text_size(text)
        self.text_bytes += size

    def add_json(self, value: Any) -> None:
        """Count a value that templates write as JSON.

        Raises:
            FieldError: it is nested too deeply to be written again.
        """
        size = json_size(value)
        self.json_bytes += size
        self.text_bytes += size


def text_size(text: str) -> int:
    """UTF-8 bytes of a text, or of what NFC or NFKC makes of it where that is more: some tokenizers normalise first,
    and a few characters grow (U+FDFA from 3 bytes to 33)."""
    if text.isascii():
        return len(text)
    size = len(text.encode("utf-8", "surrogatepass"))
    if unicodedata.is_normalized("NFKC", text):
        return size
    forms = (unicodedata.normalize(form, text) for form in ("NFC", "NFKC"))
    return max(size, *(len(form.encode("utf-8", "surrogatepass")) for form in forms))


def json_size(value: Any) -> int:
    """No fewer bytes than any of the usual ways to write a value as JSON: compact, with spaces, indented by up to
    four, non-ASCII characters and HTML's special ones escaped (Jinja's `tojson`).

    Raises:
        FieldError: it is nested too deeply to be written again.
    """
    try:
        raw = orjson.dumps(value)
    except TypeError:
        raise FieldError("is nested too deeply") from None
    bare = _STRING.sub(b"", raw)
    brackets = bare.translate(None, _NOT_BRACKETS)
    depth = max(accumulate(map(_STEP.__getitem__, brackets)), default=0)
    breaks = bare.count(b",") + len(brackets)
    grown = 0 if raw.isascii() else max(2 * len(raw.translate(None, _ASCII)), text_size(raw.decode()) - len(raw))
    escaped = sum(raw.count(mark) for mark in (b"<", b">", b"&", b"'", b"\x7f"))
    return len(raw) + bare.count(b":") + breaks * (1 + 4 * depth) + grown + 5 * escaped
