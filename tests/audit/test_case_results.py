"""The finding: gate-keeping, classes, one careful sentence."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.audit._results import effect_words, finding, outcome_json, p_words
from spiritsafe.audit._types import Hypothesis, Outcome

NULLS = {name: f"The suspect does not depend on {name}." for name in "abcd"}
ALPHA = 1e-3


def outcome(test: str, log10_p: float, *, most: Any = "proof", family: int = 1, **more: Any) -> Outcome:
    effect = {"name": "released preferred", "value": 0.79, "ci95": [0.74, 0.84], "under_null": 0.5}
    return Outcome(test, "twins", most, log10_p, 100, family, (), more.pop("effect", effect), **more)


def found(*ps: float, **more: Any) -> Any:
    return finding([outcome(name, p) for name, p in zip("abcd", ps, strict=False)], NULLS, ALPHA, **more)


@pytest.mark.parametrize(
    ("ps", "grade", "decided"),
    [
        ((-5, -5, -5), "proof", ("a", "b", "c")),
        ((-5, -1, -9), "proof", ("a",)),
        ((-1, -9, -9), "inconclusive", ()),
        ((-3.0,), "proof", ("a",)),
        ((-2.9999,), "inconclusive", ()),
        ((0.0,), "inconclusive", ()),
    ],
)
def test_a_test_counts_while_all_before_it_rejected(ps: Any, grade: str, decided: Any) -> None:
    one = found(*ps)
    assert (one.grade, one.decided, one.log10_p, one.test) == (grade, decided, ps[0], "a")


def test_together_the_tests_keep_alpha() -> None:
    """Whichever hypotheses are true: any false rejection needs the first true one to be rejected at alpha."""
    levels = [-9.0, -3.0, -2.0]
    for ps in itertools.product(levels, repeat=3):
        for true in itertools.product([False, True], repeat=3):
            wrong = [i for i, name in enumerate("abc") if name in found(*ps).decided and true[i]]
            if wrong:
                assert ps[true.index(True)] <= math.log10(ALPHA)


def test_what_is_missing_makes_a_lead_of_proof_and_says_why() -> None:
    assert "nothing outside the case" in found(-9, unanchored=["x"]).statement
    assert found(-9, unanchored=["x"]).grade == "lead"
    one = finding([outcome("a", -9, most="lead")], NULLS, ALPHA)
    assert one.grade == "lead" and "because nothing was committed to beforehand" in one.statement
    accused = {"innocent": [outcome("a", -4)]}
    assert found(-9, controls=accused).grade == "lead" and "innocent" in found(-9, controls=accused).statement
    assert found(-9, controls={"innocent": [outcome("a", -1)]}).grade == "proof"
    assert found(-1, unanchored=["x"], controls=accused).grade == "inconclusive"


def test_nothing_counted_is_nothing_tested() -> None:
    said = finding([replace(outcome("a", 0.0), n_scored=0)], NULLS, ALPHA).statement
    assert "was not put to the test" in said and "0.79" not in said


@given(st.floats(-400, 0), st.integers(1, 10_000))
def test_the_sentence_states_null_p_and_effect_and_no_odds(log10_p: float, family: int) -> None:
    one = finding([outcome("a", log10_p, family=family)], NULLS, ALPHA)
    said = one.statement
    assert NULLS["a"].rstrip(".") in said and p_words(log10_p) in said and "0.79 (95 % interval 0.74 to 0.84" in said
    assert said.endswith(".") and "\n" not in said and (family == 1) == ("corrected for" not in said)
    assert not re.search(r"guilt|distilled|stolen|likely that|certain", said)
    assert ("rejected" in said) and (one.grade != "inconclusive" or "does not show that it is true" in said)


@given(st.floats(-300, -4.001))
def test_small_p_values_are_never_written_smaller(log10_p: float) -> None:
    mantissa, raised = p_words(log10_p).split(" × 10")
    exponent = int(raised.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    written = math.log10(float(mantissa)) + exponent
    assert log10_p - 1e-8 <= written <= log10_p + 0.05


@given(st.floats(-3.999, 0))
def test_nor_are_large_ones(log10_p: float) -> None:
    assert 10**log10_p * (1 - 1e-8) <= float(p_words(log10_p)) <= 10**log10_p * 1.1 + 1e-12


def test_a_p_just_above_the_level_does_not_read_as_the_level() -> None:
    assert "at most 0.0011. That exceeds the level of 0.001" in found(math.log10(0.001004)).statement
    assert "at most 0.001. That does not exceed the level of 0.001" in found(math.log10(0.000996)).statement


def test_effects_in_words() -> None:
    assert effect_words({"name": "x", "value": 12345.0}) == "x 12,345"
    assert effect_words({"name": "x", "value": 0.5, "under_null": 1}) == (
        "x 0.5 (1 is expected if the hypothesis holds)"
    )


def test_outcomes_are_plain_json() -> None:
    facts = {"a": np.float64(1.5), "b": [np.int64(2)], "c": float("inf"), "d": {"e": np.bool_(True)}}
    one = Hypothesis("h", np.float64(-2), np.int64(3), np.float32(0.5), (np.int64(1), 2), facts)  # type: ignore[arg-type]
    said = outcome_json(Outcome("a", "twins", "proof", -2.0, 3, 1, (one,), {"value": np.float64(0.5)}, ("note",)))
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["hypotheses"][0]["facts"] == {"a": 1.5, "b": [2], "c": None, "d": {"e": True}}
