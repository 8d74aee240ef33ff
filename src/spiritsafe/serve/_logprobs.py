"""Log-probabilities in replies, cut to what may be shown."""

from __future__ import annotations

from typing import Any

__all__ = ["chat_logprobs", "completion_logprobs", "token_entries"]


def chat_logprobs(given: Any, top: int, decimals: int | None) -> dict[str, Any] | None:
    """`logprobs` of a chat choice, `top` alternatives a token, rounded. None if it is none."""
    if not isinstance(given, dict):
        return None
    shown = {name: token_entries(given[name], top, decimals) for name in ("content", "refusal") if given.get(name)}
    return {"content": None, "refusal": None, **shown}


def completion_logprobs(given: Any, top: int, decimals: int | None) -> dict[str, Any] | None:
    """`logprobs` of a completions choice. Some servers write them as in the chat API."""
    if not isinstance(given, dict):
        return None
    if "content" in given:
        return chat_logprobs(given, top, decimals)
    alternatives = None
    if top and isinstance(given.get("top_logprobs"), list):
        alternatives = [_most_likely(row, top, decimals) for row in given["top_logprobs"]]
    return {
        "text_offset": _whole_numbers(given.get("text_offset")),
        "token_logprobs": [_rounded(value, decimals) for value in _list(given.get("token_logprobs"))],
        "tokens": [token for token in _list(given.get("tokens")) if isinstance(token, str)],
        "top_logprobs": alternatives,
    }


def token_entries(given: Any, top: int, decimals: int | None) -> list[dict[str, Any]]:
    """Entries of the chat and responses APIs: token, log-probability, bytes, and `top` alternatives."""
    shown = []
    for entry in _list(given):
        if isinstance(entry, dict):
            kept = _entry(entry, decimals)
            others = [other for other in _list(entry.get("top_logprobs")) if isinstance(other, dict)]
            if len(others) > top:
                others = sorted(others, key=_value, reverse=True)[:top]
            kept["top_logprobs"] = [_entry(other, decimals) for other in others]
            shown.append(kept)
    return shown


def _entry(entry: dict[str, Any], decimals: int | None) -> dict[str, Any]:
    token, raw = entry.get("token"), entry.get("bytes")
    return {
        "token": token if isinstance(token, str) else "",
        "logprob": _rounded(entry.get("logprob"), decimals),
        "bytes": _whole_numbers(raw) if isinstance(raw, list) else None,
    }


def _most_likely(row: Any, top: int, decimals: int | None) -> dict[str, float | None] | None:
    if not isinstance(row, dict):
        return None
    values = {token: value for token, value in row.items() if _is_number(value)}
    kept = sorted(values, key=values.__getitem__, reverse=True)[:top] if len(values) > top else values
    return {token: _rounded(values[token], decimals) for token in kept}


def _rounded(value: Any, decimals: int | None) -> float | None:
    if not _is_number(value):
        return None
    return float(value) if decimals is None else round(float(value), decimals) + 0.0  # + 0.0: no -0.0


def _value(entry: dict[str, Any]) -> float:
    value = entry.get("logprob")
    return float(value) if _is_number(value) and value is not None else float("-inf")


def _is_number(value: Any) -> bool:
    return type(value) is float or type(value) is int


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole_numbers(value: Any) -> list[int]:
    return [item for item in _list(value) if type(item) is int]
