"""Reasoning that a model writes into its reply between tags: taken out, however the stream is cut."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

__all__ = ["Start", "Thinking", "Withheld", "start_after"]

# As models write them: most open-weight ones; some distillates; Seed-OSS; Magistral; Kimi.
_CLOSERS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
}
_TAGS = (*_CLOSERS, *_CLOSERS.values())
_TAG = re.compile("|".join(map(re.escape, _TAGS)))
_ANY_CLOSER = re.compile("|".join(map(re.escape, _CLOSERS.values())))
_CLOSER_OF = {tag: re.compile(re.escape(closer)) for tag, closer in _CLOSERS.items()}
_STARTS = tuple({tag[0] for tag in _TAGS})  # a tag's first character occurs nowhere else in it
_LONGEST = max(map(len, _TAGS))


class Start(NamedTuple):
    """Where a reply begins. opened: inside the reasoning.  tail: an unfinished tag that the prompt ends with."""

    opened: bool = False
    tail: str = ""


def start_after(prompt: str) -> Start:
    """Where a text begins that continues `prompt`."""
    opened = max(prompt.rfind(tag) for tag in _CLOSERS) > max(prompt.rfind(tag) for tag in _CLOSERS.values())
    end = prompt[-_LONGEST:]
    return Start(opened, end[len(end) - _unfinished(end) :])


class Thinking:
    """One reply's text without its reasoning.

    whole: the text comes at once. A closing tag whose opening tag is nowhere to be seen then takes everything before it
        along; in a stream that has already left.
    withheld: what was taken out.
    """

    def __init__(self, start: Start = Start(), *, whole: bool = False) -> None:  # noqa: B008 (immutable)
        self._inside = _ANY_CLOSER if start.opened else None
        self._held, self._skip = start.tail, len(start.tail)
        self._whole = whole
        self._trim = False
        self.withheld: list[str] = []

    def feed(self, text: str) -> str:
        """Add text; returns what may be shown of it and of what was held back."""
        text = self._held + text
        shown: list[str] = []
        at = 0
        while (found := (self._inside or _TAG).search(text, at)) is not None:
            self._take(shown, text[at : found.start()])
            self._cross(shown, found[0])
            at = found.end()
        rest = text[at:]
        end = len(rest) - _unfinished(rest)
        self._held = rest[end:]
        self._take(shown, rest[:end])
        return "".join(shown)

    def finish(self) -> str:
        """What was held back because it could have become a tag, and did not."""
        shown: list[str] = []
        self._take(shown, self._held)
        self._held = ""
        return "".join(shown)

    def _take(self, shown: list[str], text: str) -> None:
        text, self._skip = text[self._skip :], max(0, self._skip - len(text))
        if self._inside is not None:
            if text and self._whole:
                self.withheld.append(text)
            return
        if self._trim:
            text = text.lstrip()
        if text:
            self._trim = False
            shown.append(text)

    def _cross(self, shown: list[str], tag: str) -> None:
        self._skip = 0
        if self._inside is None and tag in _CLOSER_OF:
            self._inside = _CLOSER_OF[tag]
            return
        if self._inside is None and self._whole:
            self.withheld += shown
            shown.clear()
        self._inside, self._trim = None, True


class Withheld:
    """The texts of one request's replies without their reasoning.

    starts: where the replies to each prompt begin.  n: replies to a prompt.
    thoughts: what was taken out of whole replies.
    """

    def __init__(self, starts: Sequence[Start], n: int) -> None:
        self._starts, self._n = starts, n
        self._streams: dict[Hashable, Thinking] = {}
        self.thoughts: list[str] = []

    def whole(self, text: str, index: int = 0) -> str:
        """A whole text; `index` is its choice's."""
        thinking = Thinking(self._start(index), whole=True)
        shown = thinking.feed(text) + thinking.finish()
        self.thoughts += thinking.withheld
        return shown

    def piece(self, key: Hashable, text: str, index: int = 0, *, last: bool = False) -> str:
        """The next piece of a streamed text, by whatever tells the texts apart."""
        if key not in self._streams:
            self._streams[key] = Thinking(self._start(index))
        thinking = self._streams[key]
        return thinking.feed(text) + (thinking.finish() if last else "")

    def _start(self, index: int) -> Start:
        return self._starts[min(index // self._n, len(self._starts) - 1)]


def _unfinished(text: str) -> int:
    """Length of the end of `text` that begins a tag."""
    at = max(text.rfind(start, max(0, len(text) - _LONGEST)) for start in _STARTS)
    end = text[at:] if at >= 0 else ""
    return len(end) if end and any(tag.startswith(end) and tag != end for tag in _TAGS) else 0
