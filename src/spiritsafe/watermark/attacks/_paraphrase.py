"""Paraphrase by a language model, a few sentences at a time."""

from __future__ import annotations

from collections.abc import Sequence

from spiritsafe.errors import BadInput
from spiritsafe.watermark.attacks._splice import sentences
from spiritsafe.watermark.attacks._types import Text, Tools

__all__ = ["PARAPHRASE_PROMPT", "Paraphrase"]

PARAPHRASE_PROMPT = (
    "Rewrite the following text in your own words. Keep its meaning, change the wording and the order of phrases, and"
    " answer with the rewritten text only.\n\n{text}"
)


class Paraphrase:
    """Has a language model rewrite the text, so many sentences a request.

    A request that comes back empty keeps its sentences as they were: the attack loses nothing, and `passages_rewritten`
    says how much of the text really was rewritten.
    """

    def __init__(self, label: str, sentences_each: int, tools: Tools) -> None:
        if tools.rewrite is None:
            raise BadInput(f"--attack {label}: needs a language model; give --rewriter, local weights or an API's URL")
        self.label, self.size, self.rewrite = label, sentences_each, tools.rewrite

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        passages = [self._passages(text.text) for text in texts]
        flat = [passage for own in passages for passage in own]
        answers = iter(self.rewrite(flat)) if flat else iter(())
        out = []
        for text, own in zip(texts, passages, strict=True):
            rewritten = [next(answers).strip() for _ in own]
            joined = "".join(
                passage if not new else new + _trailing_space(passage)
                for passage, new in zip(own, rewritten, strict=True)
            )
            done = sum(bool(new) and new != old.strip() for old, new in zip(own, rewritten, strict=True))
            out.append(text.edited(joined, passages_rewritten=done / len(own) if own else 0.0))
        return out

    def _passages(self, text: str) -> list[str]:
        parts = sentences(text)
        return ["".join(parts[i : i + self.size]) for i in range(0, len(parts), self.size)]


def _trailing_space(passage: str) -> str:
    return passage[len(passage.rstrip()) :]
