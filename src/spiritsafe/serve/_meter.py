"""What a request may cost at most, before it leaves, and what it did cost, after.

A bound on prompt tokens needs no tokenizer: a byte-level tokenizer, or one that falls back to bytes, makes at most one
token of each byte it reads. To the bytes of all texts comes what the chat template writes around them, which only the
operator knows (`template_tokens`), and a few tokens a message, part, tool or call.
"""

from __future__ import annotations

import bisect
from datetime import UTC, datetime
from typing import Any, Literal

from spiritsafe.records import Usage
from spiritsafe.serve._config import GuardConfig, Upstream
from spiritsafe.serve._output import Reported, choice_texts, reported_usage, written
from spiritsafe.serve._policy import Applied
from spiritsafe.serve._tokens import Counters, estimate
from spiritsafe.spend import Price
from spiritsafe.wire import Ask

__all__ = ["Meter", "StreamMeter"]

Note = Literal["", "counted", "estimated", "bounded"]

_PER_PIECE = 32  # tokens that templates write around a message, a part, a tool or a tool call
_PER_PROMPT = 8  # special tokens and the like around a bare prompt
_PER_IMAGE = 16  # around an image
_ENDS = {"response.completed": "stop", "response.incomplete": "length", "response.failed": "error"}
_NOTHING = Reported(None, None, 0, 0)
_LONGEST_TOKEN = 128  # bytes: a count of fewer tokens than this allows is no count of what was written


class Meter:
    """Prices, bounds and counts for one config.

    Raises:
        BadInput: a tokenizer cannot be read.
    """

    def __init__(self, config: GuardConfig) -> None:
        self._counters = Counters(config)
        self._prices: dict[str, tuple[list[float], list[Price]]] = {}
        for entry in sorted(config.prices, key=lambda entry: entry.from_):
            starts, prices = self._prices.setdefault(entry.model, ([], []))
            starts.append(datetime(entry.from_.year, entry.from_.month, entry.from_.day, tzinfo=UTC).timestamp())
            prices.append(entry)

    def price(self, model: str, upstream: Upstream, now: float) -> Price:
        """The list price at a time (Unix seconds): the newest entry of `prices` that has begun, else the upstream's."""
        starts, prices = self._prices.get(model, ((), ()))
        begun = bisect.bisect_right(starts, now)
        return prices[begun - 1] if begun else upstream.price

    def worst(self, ask: Ask, applied: Applied, upstream: Upstream, *, tight: bool = False) -> tuple[int, int]:
        """Upper bounds of prompt and completion tokens; kept in `applied`, as the most that will be charged.

        tight: count texts with the upstream's tokenizer, if it is there: several times closer, at the cost of
            tokenizing the prompt. See `Counters.bound` for what it relies on.
        """
        tokens_in = ask.text_bytes
        if tight and upstream.tokenizer is not None:
            given = ask.json_bytes + ask.quoted_bytes + ask.token_ids
            tokens_in = given + self._counters.bound(upstream, ask.texts(quoted=False))
        if ask.kind in ("chat", "responses"):
            tokens_in += upstream.template_tokens + _PER_PIECE * ask.pieces
        else:
            tokens_in += _PER_PROMPT * ask.pieces
        tokens_in += ask.images * (upstream.image_tokens + _PER_IMAGE)
        most = applied.max_tokens
        if upstream.context is not None:
            tokens_in, most = min(tokens_in, upstream.context * ask.prompts), min(most, upstream.context)
        # of a prediction, tokens that were not used may be billed as output
        applied.bounds = tokens_in, (most * ask.prompts + ask.predicted_bytes) * applied.n
        return applied.bounds

    def bounds(self, ask: Ask, applied: Applied, upstream: Upstream) -> tuple[int, int]:
        """What `worst` worked out, now if it has not yet."""
        return applied.bounds if applied.bounds != (0, 0) else self.worst(ask, applied, upstream)

    def count(self, upstream: Upstream, text: str) -> int:
        """Tokens of a text by the upstream's tokenizer; estimated without one."""
        return self._counters.count(upstream, text)

    def usage(self, ask: Ask, applied: Applied, data: dict[str, Any], upstream: Upstream) -> tuple[Usage, Note]:
        """What a whole reply used, and how that is known.

        "": as reported. "counted", "estimated": by the tokenizer or from bytes, as the report is absent or cannot be
        true. "bounded": the report is more than the proven bound, which is what is charged: caps hold even against an
        upstream that miscounts.
        """
        texts = written(ask.kind, data)
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        return self.judge(ask, applied, upstream, reported_usage(data), size, texts, estimate(size))

    def stream(self, ask: Ask, applied: Applied, upstream: Upstream) -> StreamMeter:
        """A meter for one stream."""
        return StreamMeter(self, ask, applied, upstream)

    @staticmethod
    def nano(pico: int) -> int:
        """Pico-dollars as nano-dollars, rounded up."""
        return -(-pico // 1000)

    def judge(
        self,
        ask: Ask,
        applied: Applied,
        upstream: Upstream,
        reported: Reported | None,
        size: int,
        texts: list[str],
        guess: int,
    ) -> tuple[Usage, Note]:
        """What a reply used, by what is known of it. size: bytes written.  texts: what was written, where a tokenizer
        may count it.  guess: tokens it may be, without one."""
        most_in, most_out = self.bounds(ask, applied, upstream)
        if ask.body.get("echo"):
            size = max(0, size - ask.text_bytes * applied.n)
        counts = upstream.tokenizer is not None
        guessed: Note = "counted" if counts else "estimated"
        note: Note = ""
        tokens_in, tokens_out, cached, reasoning = reported or _NOTHING
        if not tokens_in:
            note, tokens_in = guessed, self.prompt_tokens(ask, upstream)
        if ask.kind == "embeddings":
            tokens_out = 0
        elif tokens_out is None or tokens_out * _LONGEST_TOKEN < size:
            note = guessed
            tokens_out = self.count(upstream, "".join(texts)) if counts else guess
        if tokens_in > most_in or tokens_out > most_out:
            note = note or "bounded"
            tokens_in, tokens_out = min(tokens_in, most_in), min(tokens_out, most_out)
        return Usage(tokens_in, tokens_out, min(cached, tokens_in), min(reasoning, tokens_out)), note

    def prompt_tokens(self, ask: Ask, upstream: Upstream, *, quick: bool = False) -> int:
        """Tokens the prompt is likely to take. quick: from bytes, although a tokenizer could say better."""
        plain = ask.text_bytes - ask.json_bytes - ask.token_ids
        counts = upstream.tokenizer is not None and not quick
        texts = sum(self.count(upstream, text) for text in ask.texts()) if counts else estimate(plain)
        # what templates write as JSON is bounded generously, by about three times
        return (
            texts + estimate(ask.json_bytes // 3) + ask.token_ids + 4 * ask.pieces + ask.images * upstream.image_tokens
        )


class StreamMeter:
    """What a stream has used so far. Feed it every event as it came, before any filter.

    finished: every reply has ended; what may follow is the report of usage.
    """

    def __init__(self, meter: Meter, ask: Ask, applied: Applied, upstream: Upstream) -> None:
        self._meter, self._ask, self._applied, self._upstream = meter, ask, applied, upstream
        self._most = meter.bounds(ask, applied, upstream)[1]
        self._responses = ask.kind == "responses"
        self._replies = applied.n * ask.prompts
        echoed = ask.text_bytes * self._replies if ask.body.get("echo") else 0
        self._most_bytes = self._most * _LONGEST_TOKEN + echoed
        self._bytes = self._chunks = 0
        self._texts: list[str] | None = None if upstream.tokenizer is None else []
        self._reported: Reported | None = None
        self.finish_reasons: dict[int, str] = {}
        self.finished = False

    def feed(self, data: dict[str, Any]) -> None:
        """Account for one event's data. It does not raise, whatever an upstream sends."""
        if self._responses:
            self._event(data)
        else:
            choices = data.get("choices")
            for choice in choices if type(choices) is list else ():
                if type(choice) is dict:
                    self._choice(choice)
        if "usage" in data or "response" in data:
            self._reported = reported_usage(data) or self._reported

    @property
    def tokens_out(self) -> int:
        """No fewer tokens than have come: one a byte, and an end token each; never more than may come."""
        return min(self._most, self._bytes + self._replies) if self._bytes else 0

    @property
    def overrun(self) -> bool:
        """True if more has come than the tokens that were asked for can be."""
        return self._bytes > self._most_bytes

    def usage(self) -> tuple[Usage, Note]:
        """What the stream used so far, as `Meter.usage` says it."""
        # servers that stream token by token give the count away; pieces of several tokens, or of parts of one, do not
        guess = min(estimate(self._bytes), max(self._chunks, self._bytes // 4))
        return self._meter.judge(
            self._ask, self._applied, self._upstream, self._reported, self._bytes, self._texts or [], guess
        )

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        if type(delta) is dict and len(delta) == 1 and type(delta.get("content")) is str:
            self._add(delta["content"])
        else:
            for text in choice_texts(choice):
                self._add(text)
        reason = choice.get("finish_reason")
        if type(reason) is str:
            index = choice.get("index")
            self.finish_reasons[index if type(index) is int else 0] = reason
            self.finished = len(self.finish_reasons) >= self._replies

    def _event(self, data: dict[str, Any]) -> None:
        name = data.get("type")
        if type(name) is not str:
            return
        if name.endswith(".delta") and type(data.get("delta")) is str:
            self._add(data["delta"])
        elif name in _ENDS:
            self.finish_reasons[0] = _ENDS[name]
            self.finished = True

    def _add(self, text: str) -> None:
        if text:
            self._bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
            self._chunks += 1
            if self._texts is not None:
                self._texts.append(text)
