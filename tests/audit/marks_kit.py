"""What the tests of radioactivity share: keys as the audit tries them, and scores of what innocents read or wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from benchmarks.small_language import Keys, Language, Predict, copying, trained_on

from spiritsafe.audit.tests._radioactive_keys import Tried
from spiritsafe.audit.tests._radioactive_reading import Wrote, completed, predicted
from spiritsafe.audit.tests._radioactive_score import Scored, account_scores, epoch_score
from spiritsafe.pvalue import binomial
from spiritsafe.watermark import Marking, NativeDetector

__all__ = [
    "Keys",
    "Language",
    "Predict",
    "at_most",
    "completion_scores",
    "copying",
    "detector",
    "read",
    "reading_scores",
    "trained_on",
]


def detector(keys: Keys, marking: Marking) -> NativeDetector:
    return NativeDetector.of_keys(marking, [("e", keys.epoch, keys.coin)])


def tried(keys: Keys, marking: Marking) -> tuple[Tried, Tried]:
    theirs = NativeDetector.of_keys(marking, [("e", keys.account, keys.coin)])
    return (
        Tried("epoch", detector(keys, marking), "epoch", key=keys.epoch),
        Tried("account", theirs, "account", 0, keys.account),
    )


def read(texts: Sequence[Wrote], predict: Predict) -> list[Wrote]:
    """The texts with what the suspect says at each token."""
    out = []
    for text in texts:
        ids = np.concatenate([text.prompt, text.ids]).astype(np.int64)
        said = predict(ids)[len(text.prompt) - 1 : -1]
        out.append(Wrote(text.prompt, text.ids, said.astype(np.uint32)))
    return out


def reading_scores(marking: Marking, keys: Keys, texts: Sequence[Wrote], decoys: int = 0) -> tuple[Scored, Scored]:
    """(epoch's, account's) in reading mode."""
    epoch, account = tried(keys, marking)
    by: Any = epoch.detector
    candidates = predicted(by, texts)
    return (
        epoch_score(epoch, candidates.counted(by, "epoch"), False, b"seed", decoys),
        *account_scores([account], candidates.counted(by, "account"), False),
    )  # type: ignore[return-value]


def at_most(hits: int, trials: int, alpha: float) -> bool:
    """Could so many trials reach alpha if no more than a share of alpha should? Wrong once in a million."""
    return hits <= trials * alpha or binomial(trials, alpha, hits) > -6


def completion_scores(
    marking: Marking, keys: Keys, written: Sequence[Wrote], marked: Sequence[Wrote] | None
) -> tuple[Scored, Scored]:
    """(epoch's, account's) of completions."""
    epoch, account = tried(keys, marking)
    by: Any = epoch.detector
    candidates = completed(by, written, marked)
    fixed = marked is None
    return (
        epoch_score(epoch, candidates.counted(by, "epoch"), fixed, b"seed", 0),
        *account_scores([account], candidates.counted(by, "account"), fixed),
    )  # type: ignore[return-value]
