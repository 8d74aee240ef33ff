"""Innocents on marked texts, a fresh key a trial: never called guilty more often than nominal. And the counterexample."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marks_kit import (
    Keys,
    Language,
    at_most,
    completion_scores,
    copying,
    read,
    reading_scores,
    trained_on,
)

from spiritsafe.audit.tests._radioactive_reading import earliest
from spiritsafe.pvalue import binomial
from spiritsafe.watermark import Marking

MARKINGS = {
    "kgw": Marking(scheme="kgw", context_width=1, delta=4.0, account_share=0.3),
    "gumbel": Marking(context_width=1, account_share=0.3),
    "synthid": Marking(scheme="synthid", context_width=2, account_share=0.3, depth=8),
}
VOCAB, TEXTS, LENGTH, TRIALS = 64, 16, 30, 150


@pytest.mark.slow
@pytest.mark.parametrize("scheme", MARKINGS)
def test_innocents_are_never_called_guilty_too_often(scheme: str) -> None:
    """The unmarked teacher, a student of other keys' texts and one that copies from its context, reading texts that
    repeat themselves (64 tokens, 16 texts of 30); and the teacher's own unmarked completions."""
    random, marking = np.random.default_rng(7), MARKINGS[scheme]
    language = Language(VOCAB, 1.6, 1)
    found = defaultdict(list)
    for trial in range(TRIALS):
        keys, prompts = Keys.fresh(random), random.integers(1, VOCAB, (TEXTS, 3))
        if trial % 10 == 0:
            other = trained_on(language, language.texts(marking, Keys.fresh(random), prompts, LENGTH, random))
        marked = language.texts(marking, keys, prompts, LENGTH, random, unmarked=2)
        for suspect in (language.next_of, other.next_of, copying(language)):
            for one in reading_scores(marking, keys, read(marked, suspect)):
                found["reading"].append(one.log10_p)
                found["reading, tail at n"].append(one.tail)
        written = language.texts(marking, None, prompts, LENGTH, random)
        found["supervised"] += [one.log10_p for one in completion_scores(marking, keys, written, marked)]
        found["unsupervised"] += [one.log10_p for one in completion_scores(marking, keys, written, None)]
    for what, log10_p in found.items():
        for alpha in (1e-2, 1e-3):
            # within a trial innocents share key and texts: count trials, at the level that their number corrects to
            worst = np.min(np.reshape(log10_p, (TRIALS, -1)), 1) + np.log10(len(log10_p) / TRIALS)
            hits = int((worst <= np.log10(alpha)).sum())
            assert at_most(hits, TRIALS, alpha), (what, alpha, hits)


def coins_of_two_texts(random: np.random.Generator, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Coins (2, m, 2) of two groups of contexts for tokens a and b, and what a hard mark draws (2, m): the greener."""
    green = random.random((2, m, 2)) < 0.5
    even = green[..., 0] == green[..., 1]
    return green, np.where(even, random.random((2, m)) < 0.5, green[..., 1]).astype(int)


def test_the_published_rule_rejects_innocents_too_often_and_ours_does_not() -> None:
    """Two texts; each draws at the contexts where the other passes later, and the suspect repeats what was drawn."""
    random, m, trials = np.random.default_rng(0), 100, 10_000
    published = 0
    for _ in range(trials):
        green, drawn = coins_of_two_texts(random, m)
        # what was drawn in one group is predicted in the other; each pair is new, each context new in its text
        total = sum(green[g, np.arange(m), drawn[1 - g]].sum() for g in (0, 1))
        published += binomial(2 * m, 0.5, float(total)) <= -2
    assert not at_most(published, trials, 1e-2)
    # the same texts for ours: a text passes a context only after the other drew there, so that nothing is left
    places = np.arange(2 * m)
    rows = np.concatenate([places, (places + m) % (2 * m)])
    passing = np.tile(places >= m, 2)
    assert not (earliest(rows, np.tile(places, 2)) & passing).any()


@given(st.lists(st.lists(st.integers(0, 6), max_size=12), max_size=8))
def test_what_counts_was_fixed_before_any_text_used_its_context(texts: list[list[int]]) -> None:
    """Followed in step: a context counts at the step at which the first texts come to it."""
    places = np.array([place for text in texts for place in range(len(text))], np.int64)
    mask = earliest(np.array([row for text in texts for row in text], np.uint64), places)
    used: set[int] = set()
    expected = set()
    for step in range(12):
        here = [(t, text[step]) for t, text in enumerate(texts) if step < len(text)]
        expected |= {(t, step) for t, row in here if row not in used}
        used |= {row for _, row in here}
    places_of = [(t, place) for t, text in enumerate(texts) for place in range(len(text))]
    assert {at for at, counts in zip(places_of, mask, strict=True) if counts} == expected
