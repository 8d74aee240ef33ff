"""Marks of what a prompt asks for, by phrases that extraction prompts share. Each alone is innocent: *watch* weighs how
often an account shows them, against its own past and against its peers."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from spiritsafe.wire import Ask

__all__ = ["marks_of"]

# Phrases by a part of theirs that few other texts have: looked for first, as most prompts show none.
_STEP_BY_STEP = {
    "step": ("step by step", "step-by-step"),
    "think": ("think aloud", "think out loud", "let's think", "thinking process"),
    "thought": ("chain of thought", "chain-of-thought", "thought process"),
    "reasoning": ("show your reasoning", "internal reasoning", "reasoning process", "full reasoning"),
    "show your": ("show your work", "show your steps"),
    "paso": ("paso a paso",),
    "passo": ("passo a passo", "passo dopo passo"),
}
_EXPLAIN = {
    "explain": ("explain your", "explain why", "explain how you"),
    "justify": ("justify your",),
    "reasons": ("give your reasons", "reasons for your", "list the reasons"),
}
_RUBRIC = {
    "rubric": ("rubric",),
    " scale": ("on a scale of", "on a scale from"),
    "e the ": ("rate the", "grade the", "score the", "evaluate the following"),
    "judge": ("as a judge", "impartial judge"),
    "better": ("response is better", "answer is better"),
}
_JSON = {
    "json": ("json only", "only json", "valid json", "in json", "as json", "json format", "json object", "with json")
}
_ELSEWHERE = (  # the same in other languages
    ("schritt für schritt", "étape par étape", "шаг за шагом", "пошагово", "一步一步", "逐步", "思考过程", "推理过程",
     "段階的に", "단계별로"),
    ("begründe", "explica por qué", "обоснуй", "объясни почему", "解释你的", "说明理由", "理由を説明"),
    ("评分标准", "打分", "по шкале", "評価基準"),
)  # fmt: skip
_REFERRING = frozenset(
    {"it", "its", "that", "this", "these", "those", "they", "them", "again", "also", "instead", "above", "previous",
     "earlier", "continue", "same", "это", "этот", "这个", "那个", "上面"}
)  # fmt: skip
_FURNITURE = (
    ("###", "\n## "),
    ("---", "===", "***"),
    ('\n"""', "```"),
    ("\n1.", "\n- ", "\n* "),
    (":\n", "\ninput", "\nquestion"),
)
_INLINE_FURNITURE = (("</", "/>"), ("{{", "[["))
_FIRST_WORDS = 12

# Where scripts begin in Unicode, coarsely; the rest of the world is "other".
_SCRIPTS = (
    (0x0000, "latin"), (0x0370, "greek"), (0x0400, "cyrillic"), (0x0530, "other"), (0x0590, "hebrew"),
    (0x0600, "arabic"), (0x0780, "other"), (0x0900, "indic"), (0x0E00, "thai"), (0x0E80, "other"), (0x1E00, "latin"),
    (0x2000, "other"), (0x3040, "kana"), (0x3100, "other"), (0x3400, "han"), (0xA000, "other"), (0xAC00, "hangul"),
    (0xD7B0, "other"), (0xF900, "han"), (0xFB00, "other"),
)  # fmt: skip
_SCRIPT_STARTS = [start for start, _ in _SCRIPTS]
_SAMPLE = 64  # letters


def marks_of(ask: Ask, low: str, words: Sequence[str]) -> dict[str, Any]:
    """The marks of a prompt's last user turn, given in lower case and as words.

    cot, explain, rubric, json: it asks for reasoning step by step, for reasons, for marks by a scheme, for JSON.
    refers: it leans on what was said before.  template: kinds of furniture that templates have, 0 to 7.
    script: what it is written in.  tools: it brings tools.
    """
    ascii_only = low.isascii()
    elsewhere = (False, False, False) if ascii_only else tuple(_any(phrases, low) for phrases in _ELSEWHERE)
    furniture = sum(_any(marks, low) for marks in _INLINE_FURNITURE)
    if "\n" in low:
        furniture += sum(_any(marks, low) for marks in _FURNITURE)
    return {
        "cot": _says(_STEP_BY_STEP, low) or elsewhere[0],
        "explain": _says(_EXPLAIN, low) or elsewhere[1],
        "rubric": _says(_RUBRIC, low) or elsewhere[2],
        "json": _wants_json(ask) or _says(_JSON, low),
        "refers": not _REFERRING.isdisjoint(words[:_FIRST_WORDS]),
        "template": furniture,
        "script": "latin" if ascii_only else _script(low),
        "tools": "tools" in ask.body or "functions" in ask.body,
    }


def _says(phrases: Mapping[str, Sequence[str]], low: str) -> bool:
    for part in phrases:  # noqa: SIM110 (a generator takes twice as long)
        if part in low and _any(phrases[part], low):
            return True
    return False


def _any(phrases: Sequence[str], low: str) -> bool:
    for phrase in phrases:  # noqa: SIM110
        if phrase in low:
            return True
    return False


def _wants_json(ask: Ask) -> bool:
    options = ask.body.get("text") if ask.kind == "responses" else None
    wanted = ask.body.get("response_format") or (options or {}).get("format") or {}
    return isinstance(wanted, dict) and wanted.get("type") in ("json_object", "json_schema")


def _script(low: str) -> str:
    """The script of most letters of a sample."""
    letters = [c for c in low[: 16 * _SAMPLE] if c.isalpha()][:_SAMPLE]
    found = [_SCRIPTS[bisect.bisect_right(_SCRIPT_STARTS, ord(c)) - 1][1] for c in letters]
    return max(sorted(set(found)), key=found.count, default="other")
