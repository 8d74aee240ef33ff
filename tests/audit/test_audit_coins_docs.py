"""The page on twins and canaries says what the code does, and prints what it says it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe import pvalue
from spiritsafe.audit.tests._resemblance import Grams

PAGE = (Path(__file__).parents[2] / "docs" / "audit" / "twins-and-canaries.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def run(block: str) -> tuple[list[str], dict[str, Any]]:
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(block, names)
    return printed.getvalue().split(), names


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_prints_its_comments(block: str) -> None:
    printed, _ = run(block)
    assert printed and printed == re.findall(r"\)  # (-?[\d.]+)$", block, re.M)


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_pages_resemblance_is_the_tests(one: str, other: str) -> None:
    assert WRITTEN(one, other) == Grams(one).like(Grams(other))


WRITTEN = run(BLOCKS[0])[1]["resemblance"]


def test_the_pages_table_of_pairs() -> None:
    rows = re.findall(r"^\| (\d+) % \| (\d+) \| (\d+) \|$", PAGE, re.M)
    assert len(rows) == 4
    rng = np.random.default_rng(7)
    for percent, fixed, stops in (map(int, row) for row in rows):
        n, share = fixed, percent / 100
        tails = pvalue.binomial(n, 0.5, np.arange(n + 1.0))
        needed = int(np.argmax(tails <= -3))
        assert 10 ** pvalue.binomial(n, share, needed) >= 0.8
        coins = rng.random((300, 2 * stops)) < share
        process = [np.argmax(np.append(pvalue.coin_process(row), np.inf) >= 3) for row in coins]
        assert np.quantile(process, 0.8) == pytest.approx(stops, rel=0.15)
