"""Marks of what a prompt asks for, by phrases that extraction prompts share. Each alone is innocent: *watch* weighs how
often an account shows them, against its own past and against its peers."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

from spiritsafe.wire import Ask

__all__ = ["marks_of"]

# Mark, a part of its phrases that few other texts have, and the phrases. Most prompts show no such part.
_PHRASES = (
    ("cot", "step", ("step by step", "step-by-step")),
    ("cot", "think", ("think aloud", "think out loud", "let's think", "thinking process")),
    ("cot", "thought", ("chain of thought", "chain-of-thought", "thought process")),
    ("cot", "reasoning", ("show your reasoning", "internal reasoning", "reasoning process", "full reasoning")),
    ("cot", "show your", ("show your work", "show your steps")),
    ("cot", "paso a", ("paso a paso",)),
    ("cot", "passo", ("passo a passo", "passo dopo passo")),
    ("explain", "explain ", ("explain your", "explain why", "explain how you")),
    ("explain", "justify", ("justify your",)),
    ("explain", "reasons", ("give your reasons", "reasons for your", "list the reasons")),
    ("rubric", "rubric", ("rubric",)),
    ("rubric", " scale ", ("on a scale of", "on a scale from")),
    ("rubric", "ate the ", ("rate the", "evaluate the following")),
    ("rubric", "grade the", ("grade the",)),
    ("rubric", "score the", ("score the",)),
    ("rubric", "judge", ("as a judge", "impartial judge")),
    ("rubric", " is better", ("response is better", "answer is better")),
    ("json", "json", ("json only", "only json", "valid json", "in json", "as json", "json format", "with json")),
)
_ELSEWHERE = (  # the same in languages that need more than ASCII
    ("cot", ("schritt für schritt", "étape par étape", "шаг за шагом", "пошагово", "一步一步", "逐步", "思考过程",
             "推理过程", "段階的に", "단계별로")),
    ("explain", ("begründe", "explica por qué", "обоснуй", "объясни почему", "解释你的", "说明理由", "理由を説明")),
    ("rubric", ("评分标准", "打分", "по шкале", "評価基準")),
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
_FIRST_WORDS = 12
_PUNCTUATION = ".,;:!?\"'()"

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
    marks = dict.fromkeys(("cot", "explain", "rubric", "json"), False)
    for mark, part, phrases in _PHRASES:
        if part in low and _any(phrases, low):
            marks[mark] = True
    ascii_only = low.isascii()
    if not ascii_only:
        for mark, elsewhere in _ELSEWHERE:
            marks[mark] = marks[mark] or _any(elsewhere, low)
    if not marks["json"]:
        marks["json"] = _wants_json(ask)
    furniture = ("</" in low or "/>" in low) + ("{{" in low or "[[" in low)
    if "\n" in low:
        furniture += sum(_any(signs, low) for signs in _FURNITURE)
    return {
        **marks,
        "refers": not _REFERRING.isdisjoint([word.strip(_PUNCTUATION) for word in words[:_FIRST_WORDS]]),
        "template": furniture,
        "script": "latin" if ascii_only else _script(low),
        "tools": "tools" in ask.body or "functions" in ask.body,
    }


def _any(phrases: Sequence[str], low: str) -> bool:
    return any(phrase in low for phrase in phrases)


def _wants_json(ask: Ask) -> bool:
    options = ask.body.get("text") if ask.kind == "responses" else None
    wanted = ask.body.get("response_format") or (options or {}).get("format") or {}
    return isinstance(wanted, dict) and wanted.get("type") in ("json_object", "json_schema")


def _script(low: str) -> str:
    """The script of most letters of a sample."""
    letters = [c for c in low[: 16 * _SAMPLE] if c.isalpha()][:_SAMPLE]
    found = [_SCRIPTS[bisect.bisect_right(_SCRIPT_STARTS, ord(c)) - 1][1] for c in letters]
    return max(sorted(set(found)), key=found.count, default="other")
