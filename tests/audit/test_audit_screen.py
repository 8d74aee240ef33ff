"""The screen of a training set for known marks: never above its level on text without them, and what a share of marked
rows takes to show."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from coins_kit import at_most

from marked import key_set, write
from spiritsafe.audit._screen import Screen, screen
from spiritsafe.errors import BadInput
from spiritsafe.exchanges import write_exchanges
from spiritsafe.watermark import NativeDetector
from train_kit import exchange

MARKING = {"scheme": "gumbel-dual"}


def _rows(folder: Path, ids: list[tuple[int, ...]], split: str = "train") -> Path:
    file = folder / f"{split}.parquet"
    write_exchanges(file, [exchange("…", token_ids=one, index=i, split=split) for i, one in enumerate(ids)])
    return file


def _templates(rng: random.Random, rows: int) -> list[tuple[int, ...]]:
    """Replies as templates make them: a few phrases over and over, whole replies repeated."""
    phrases = [[rng.randrange(400) for _ in range(rng.randint(3, 9))] for _ in range(30)]
    replies = [tuple(token for _ in range(5) for token in rng.choice(phrases)) for _ in range(rows // 2)]
    return replies + rng.choices(replies, k=rows - len(replies))


@pytest.mark.slow
def test_unmarked_sets_are_called_marked_no_more_often_than_the_level_says(tmp_path):
    """One trial: a training set under three fresh key sets of two epochs each, corrected for all six keys."""
    file = _rows(tmp_path, _templates(random.Random(1), 60))
    trials, lowest = 400, []
    for trial in range(trials):
        keys = (key_set(3 * trial + i, ("2026-10", "2026-11"), **MARKING) for i in range(3))
        found = screen(file, [Screen(k.id, NativeDetector(k)) for k in keys])
        lowest.append(min(one["log10_p"] for one in found))
    for alpha in (1e-1, 1e-2, 1e-3):  # the binomial bound of `at_most`
        assert at_most(int(np.sum(np.array(lowest) <= np.log10(alpha))), trials, alpha)
    assert np.mean(np.array(lowest) <= -1) > 0.01  # and it is not deaf


def test_a_tenth_of_the_rows_is_enough(tmp_path):
    keys = key_set(7, **MARKING)
    rng = random.Random(2)
    clean = [tuple(rng.randrange(400) for _ in range(60)) for _ in range(360)]
    marked = [tuple(write(keys, "2026-11", None, 60, seed).tolist()) for seed in range(40)]
    file = _rows(tmp_path, [*clean, *marked])
    ours, other = screen(
        file, [Screen("ours", NativeDetector(keys)), Screen("other", NativeDetector(key_set(8, **MARKING)))]
    )
    assert ours["log10_p"] < -10
    assert other["log10_p"] > -3
    assert ours["tokens"] == 400 * 60


def test_rows_held_out_are_not_screened(tmp_path):
    keys = key_set(7, **MARKING)
    marked = [tuple(write(keys, "2026-11", None, 60, seed).tolist()) for seed in range(40)]
    (found,) = screen(_rows(tmp_path, marked, "holdout"), [Screen("ours", NativeDetector(keys))])
    assert (found["tokens"], found["scored"], found["log10_p"]) == (0, 0, 0)


def test_a_row_repeated_counts_once(tmp_path):
    keys = key_set(7, **MARKING)
    marked = tuple(write(keys, "2026-11", None, 60, 1).tolist())
    (once,) = screen(_rows(tmp_path, [marked]), [Screen("ours", NativeDetector(keys))])
    (often,) = screen(_rows(tmp_path, [marked] * 50), [Screen("ours", NativeDetector(keys))])
    assert often["scored"] == once["scored"]
    assert often["log10_p"] == once["log10_p"]


def test_texts_without_ids_need_a_tokenizer(tmp_path):
    file = tmp_path / "rows.parquet"
    write_exchanges(file, [exchange("the cat")])
    with pytest.raises(BadInput, match="has no token ids; give the tokenizer of the models that mark"):
        screen(file, [Screen("ours", NativeDetector(key_set(7, **MARKING)))])


def test_what_is_no_training_set(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput):
        screen(tmp_path / "rows.parquet", [Screen("ours", NativeDetector(key_set(7, **MARKING)))])


def test_nothing_to_screen_for(tmp_path):
    assert screen(_rows(tmp_path, [(1, 2, 3)]), []) == []
