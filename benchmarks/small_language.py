"""Small languages that write marked texts fast, and innocents of them: for trials by the thousand, a fresh key each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from spiritsafe.audit.tests._radioactive_reading import Wrote
from spiritsafe.watermark import Marking
from spiritsafe.watermark._prf import context_hashes, key_words
from spiritsafe.watermark.schemes import scheme_for

__all__ = ["Keys", "Language", "Predict", "copying", "trained_on"]

Predict = Callable[[np.ndarray], np.ndarray]
"""Prompt and text (T,) → what comes next after each of its tokens (T,)."""


@dataclass(frozen=True)
class Keys:
    """One epoch's key, its coin's, and an account's."""

    epoch: bytes
    coin: bytes
    account: bytes

    @classmethod
    def fresh(cls, random: np.random.Generator) -> Keys:
        return cls(*(random.bytes(16) for _ in range(3)))


class Language:
    """Next tokens depend on the last two, mostly on the last. Some tokens end a text, so lengths are its own affair."""

    def __init__(self, vocab: int, spread: float, seed: int, ends: int = 1) -> None:
        random = np.random.default_rng(seed)
        self.vocab, self.ends = vocab, ends
        logits = random.normal(0, spread, (vocab, 1, vocab)) + random.normal(0, spread / 2, (1, vocab, vocab))
        self.logits_VVV = logits
        self.probs_VVV = np.exp(logits - logits.max(-1, keepdims=True))
        self.probs_VVV /= self.probs_VVV.sum(-1, keepdims=True)

    def next_of(self, ids: np.ndarray) -> np.ndarray:
        """Greedy predictions, as an unmarked copy of the teacher makes them."""
        return self.logits_VVV[ids, np.concatenate([ids[:1], ids[:-1]])].argmax(-1)

    def texts(
        self,
        marking: Marking,
        keys: Keys | None,
        prompts_DP: np.ndarray,
        length: int,
        random: np.random.Generator,
        unmarked: int = 0,
    ) -> list[Wrote]:
        """A text a prompt, marked as `Marker` marks: each context once a text, the first `unmarked` tokens not."""
        k, count = marking.context_width, len(prompts_DP)
        scheme = scheme_for(marking)
        ids = prompts_DP.copy()
        used = np.zeros((count, self.vocab**k), bool)
        powers = self.vocab ** np.arange(k)
        for step in range(length):
            probs = self.probs_VVV[ids[:, -1], ids[:, -2]].astype(np.float32)
            if keys is not None and step >= unmarked:
                windows = np.ascontiguousarray(ids[:, -k:], np.uint32)
                names = ids[:, -k:] @ powers
                rows = np.flatnonzero(~used[np.arange(count), names])
                used[np.arange(count), names] = True
                if len(rows):
                    hashes = self._hashes(marking, keys, windows[rows])
                    probs[rows] = scheme.mark(hashes, torch.from_numpy(probs[rows])).numpy()
            sums = probs.astype(np.float64).cumsum(-1)
            points = random.random(count) * sums[:, -1]
            ids = np.column_stack([ids, (sums <= points[:, None]).sum(-1)])
        return [self._cut(row, prompts_DP.shape[1]) for row in ids]

    def _hashes(self, marking: Marking, keys: Keys, windows: np.ndarray) -> np.ndarray:
        epoch, coin, account = (key_words(key)[0] for key in (keys.epoch, keys.coin, keys.account))
        theirs = context_hashes(coin, windows).astype(np.float64) / 2.0**64 < marking.account_share
        return np.where(theirs, context_hashes(account, windows), context_hashes(epoch, windows))

    def _cut(self, ids: np.ndarray, first: int) -> Wrote:
        text = ids[first:]
        over = np.flatnonzero(text < self.ends)
        text = text[: over[0] + 1] if len(over) else text
        return Wrote(ids[:first].astype(np.uint32), text.astype(np.uint32), text.astype(np.uint32))


def trained_on(language: Language, texts: Sequence[Wrote], weight: float = 2.0) -> Language:
    """A student: the language itself, moved towards how often tokens followed two others in these texts."""
    student = Language.__new__(Language)
    student.vocab, student.ends = language.vocab, language.ends
    counts = np.zeros_like(language.probs_VVV)
    for text in texts:
        ids = np.concatenate([text.prompt, text.ids]).astype(np.int64)
        at = np.arange(max(len(text.prompt), 2), len(ids))
        np.add.at(counts, (ids[at - 1], ids[at - 2], ids[at]), weight)
    student.probs_VVV = language.probs_VVV + counts
    student.probs_VVV /= student.probs_VVV.sum(-1, keepdims=True)
    student.logits_VVV = student.probs_VVV
    return student


def copying(language: Language) -> Predict:
    """Says what followed the last time this token stood in the text; before that, what the language says."""

    def predict(ids: np.ndarray) -> np.ndarray:
        said, last = language.next_of(ids), dict[int, int]()
        for at, token in enumerate(ids[:-1]):
            last[int(token)] = int(ids[at + 1])
            if int(ids[at + 1]) in last:
                said[at + 1] = last[int(ids[at + 1])]
        return said

    return predict
