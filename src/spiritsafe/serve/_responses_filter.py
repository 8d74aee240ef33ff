"""The reply filter for the responses API: items, parts and typed events in place of choices."""

from __future__ import annotations

from typing import Any

from spiritsafe.serve._logprobs import token_entries
from spiritsafe.serve._reply_filter import ReplyFilter, Showing, is_thought, strip

__all__ = ["ResponsesFilter"]

# of a response object: what the request said, given back
_ECHOED = ("instructions", "metadata", "prompt", "text", "tool_choice", "tools")
_DEEPEST = 4  # content within content: items hold parts, and parts hold text
_EFFORT = frozenset({"context", "effort", "generate_summary", "mode", "summary"})


class ResponsesFilter(ReplyFilter):
    """The filter of one responses request."""

    def __init__(self, showing: Showing) -> None:
        super().__init__("responses", showing)
        self._dropped: set[int] = set()

    def whole(self, data: dict[str, Any]) -> dict[str, Any]:
        """A whole response as it may leave; `data` is changed. It does not raise, whatever an upstream sends."""
        self._response(data)
        return data

    def chunk(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """One event as it may leave; None if it is of withheld reasoning. `data` is changed.

        Items that are left out leave no gap in `output_index`: clients use it as an index.
        """
        if not self.showing.reasoning and not self._show_event(data):
            return None
        inner = {name: data.pop(name) for name in ("response", "item", "part") if isinstance(data.get(name), dict)}
        self._piece(data)
        if "response" in inner:
            self._response(inner["response"])
        for name in inner.keys() - {"response"}:
            self._piece(inner[name])
        data |= inner
        return data

    def _show_event(self, data: dict[str, Any]) -> bool:
        """Take the reasoning out of an event; False if nothing is left."""
        name, at = data.get("type"), data.get("output_index")
        at = at if type(at) is int else None
        if is_thought(data.get("item")) and at is not None:
            self._dropped.add(at)
        if (
            at in self._dropped
            or is_thought(data.get("item"))
            or is_thought(data.get("part"))
            or (isinstance(name, str) and name.startswith("response.reasoning"))
        ):
            return False
        if at is not None:
            data["output_index"] = at - sum(dropped < at for dropped in self._dropped)
        if name == "response.output_text.delta" and isinstance(data.get("delta"), str):
            key = (at, str(data.get("content_index")))
            data["delta"] = self._withheld.piece(key, data["delta"])
            return bool(data["delta"])
        return True

    def _response(self, response: dict[str, Any]) -> None:
        echoed = {name: response.pop(name) for name in _ECHOED if name in response}
        if type(response.get("top_logprobs")) is int:
            echoed["top_logprobs"] = response["top_logprobs"]
        effort, output = response.pop("reasoning", None), response.pop("output", None)
        strip(response, self._forbidden)
        response |= echoed
        if isinstance(effort, dict):
            response["reasoning"] = {key: effort.get(key) for key in _EFFORT & effort.keys() if _is_word(effort[key])}
        if output is not None:
            response["output"] = self._kept(output)

    def _piece(self, piece: dict[str, Any], depth: int = 0) -> None:
        """An item, a part or an event: its text and log-probabilities, and those of its content."""
        content = piece.pop("content", None)
        had, logprobs = "logprobs" in piece, piece.pop("logprobs", None)
        strip(piece, self._forbidden)
        if not self.showing.reasoning and isinstance(piece.get("text"), str):
            piece["text"] = self._withheld.whole(piece["text"])
        if had:
            top = self.showing.top
            piece["logprobs"] = [] if top is None else token_entries(logprobs, top, self.showing.decimals)
        if isinstance(content, str):
            piece["content"] = content if self.showing.reasoning else self._withheld.whole(content)
        elif content is not None:
            piece["content"] = self._kept(content, depth + 1)

    def _kept(self, pieces: Any, depth: int = 0) -> list[Any]:
        kept = []
        for piece in pieces if isinstance(pieces, list) and depth < _DEEPEST else []:
            if not self.showing.reasoning and is_thought(piece):
                self._note_all(piece)
            elif isinstance(piece, dict):
                self._piece(piece, depth)
                kept.append(piece)
        return kept

    def _note_all(self, thought: dict[str, Any]) -> None:
        for name in ("summary", "content"):
            for part in thought[name] if isinstance(thought.get(name), list) else []:
                self._note(part.get("text") if isinstance(part, dict) else None, False)


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, str)
