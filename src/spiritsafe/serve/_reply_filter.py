"""What of an upstream's reply may leave: log-probabilities as far as allowed, reasoning if shown, no engine internals.

Upstreams are not trusted to send only what was asked for: a server-wide switch or a default can add any of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from spiritsafe.serve._logprobs import chat_logprobs, completion_logprobs
from spiritsafe.serve._thinking import Start, Withheld
from spiritsafe.wire import AskKind

__all__ = ["ReplyFilter", "Showing", "is_thought", "strip"]

_ENGINE = frozenset(
    {
        "completion_token_ids",
        "ec_transfer_params",
        "hidden_states",
        "input_messages",
        "kv_transfer_params",
        "meta_info",
        "metrics",
        "output_ids",
        "output_messages",
        "output_token_ids",
        "prompt_logprobs",
        "prompt_routed_experts",
        "prompt_text",
        "prompt_token_ids",
        "routed_experts",
        "sglext",
        "template_hash",
        "time_info",
        "timings",
        "token_ids",
        "token_offsets",
        "tokenizer_hash",
        "watermark_greedy",
        "watermark_key_id",
    }
)
_LOGPROBS = frozenset({"logprobs", "token_logprobs", "top_logprobs"})
_REASONING = frozenset({"reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks"})
_ALWAYS, _WITH_REASONING = _ENGINE | _LOGPROBS, _ENGINE | _LOGPROBS | _REASONING
_THOUGHTS = frozenset({"reasoning", "reasoning_text", "summary_text", "thinking"})
_DEEPEST = 64


class Showing(NamedTuple):
    """What one request may see.

    top: alternatives per token; 0: the chosen token's log-probability only; None: none at all.
    decimals: what log-probabilities are rounded to; None leaves them.
    reasoning: False takes it out.  starts, n: of `Withheld`.
    usage: False drops the part of a stream that reports it.
    """

    top: int | None = None
    decimals: int | None = None
    reasoning: bool = True
    usage: bool = True
    starts: tuple[Start, ...] = (Start(),)
    n: int = 1


class ReplyFilter:
    """The filter of one chat or completions request (embeddings have nothing but fields to strip).

    `whole` may be used for several replies, `chunk` for the events of one stream.
    """

    def __init__(self, kind: AskKind, showing: Showing) -> None:
        self.showing = showing
        self._chat = kind == "chat"
        self._withheld = Withheld(showing.starts, showing.n)
        self._forbidden = _ALWAYS if showing.reasoning else _WITH_REASONING

    @property
    def withheld(self) -> str:
        """The reasoning taken out of whole replies so far, for a summary."""
        return "\n\n".join(self._withheld.thoughts)

    def whole(self, data: dict[str, Any]) -> dict[str, Any]:
        """A whole reply as it may leave; `data` is changed. It does not raise, whatever an upstream sends."""
        self._choices(data, stream=False)
        return data

    def chunk(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """One event of a stream as it may leave; None if nothing is left of it. `data` is changed."""
        if not self.showing.usage and data.pop("usage", None) is not None and not data.get("choices"):
            return None
        spoke = bool(data.get("choices"))
        self._choices(data, stream=True)
        return data if not spoke or data["choices"] else None

    def _choices(self, data: dict[str, Any], *, stream: bool) -> None:
        choices = data.pop("choices", None)
        strip(data, self._forbidden)
        if type(choices) is list:
            data["choices"] = [choice for choice in choices if type(choice) is dict and self._choice(choice, stream)]
        elif choices is not None:
            data["choices"] = []

    def _choice(self, choice: dict[str, Any], stream: bool) -> bool:
        """Clean one choice; False if nothing is left of it."""
        had, logprobs = "logprobs" in choice, choice.pop("logprobs", None)
        kept = self.showing.reasoning or self._without_reasoning(choice, stream)
        strip(choice, self._forbidden)
        if had:
            clean = chat_logprobs if self._chat else completion_logprobs
            top = self.showing.top
            choice["logprobs"] = None if top is None else clean(logprobs, top, self.showing.decimals)
        return kept

    def _without_reasoning(self, choice: dict[str, Any], stream: bool) -> bool:
        """Take the reasoning out of a choice; False if that leaves nothing of a stream's choice."""
        index = choice.get("index")
        index = index if type(index) is int and index >= 0 else 0
        last = choice.get("finish_reason") is not None
        holder, name = choice, "text"
        if self._chat:
            name = "content"
            found = choice.get("delta" if stream else "message")
            holder = found if isinstance(found, dict) else {}
            for key in holder.keys() & _REASONING:
                self._note(holder.pop(key), stream)
        content = holder.get(name)
        if isinstance(content, list):
            holder[name] = self._parts(content, index, stream)
        elif isinstance(content, str) or (stream and last):
            shown = self._shown(content or "", index, stream, last)
            if shown or name in holder:
                holder[name] = shown
        if not stream or last:
            return True
        return any(item not in (None, "", []) for key, item in holder.items() if self._chat or key == "text")

    def _parts(self, parts: list[Any], index: int, stream: bool) -> list[Any]:
        kept = []
        for part in parts:
            if is_thought(part):
                self._note(part.get("thinking", part.get("text")), stream)
                continue
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                part["text"] = self._shown(part["text"], index, stream, False)
            kept.append(part)
        return kept

    def _shown(self, text: str, index: int, stream: bool, last: bool) -> str:
        if stream:
            return self._withheld.piece(index, text, index, last=last)
        return self._withheld.whole(text, index)

    def _note(self, thought: Any, stream: bool) -> None:
        if isinstance(thought, str) and not stream:
            self._withheld.thoughts.append(thought)


def is_thought(part: Any) -> bool:
    """True for an item or a content part that holds reasoning."""
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind in _THOUGHTS


def strip(node: Any, forbidden: frozenset[str], depth: int = 0) -> None:
    """Remove forbidden fields of an object at any depth; what is nested deeper than any reply is emptied."""
    if depth > _DEEPEST:
        node.clear()
        return
    if type(node) is dict:
        if not forbidden.isdisjoint(node):
            for key in forbidden & node.keys():
                del node[key]
        node = node.values()
    for item in node:
        if type(item) is dict or type(item) is list:
            strip(item, forbidden, depth + 1)
