from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.evaluate._bootstrap import MIN_GAP, Resampler, recovered


def sums(seed: int, prompts: int = 60) -> tuple[np.ndarray, ...]:
    """Teacher, base, student and tokens by prompt; prompts differ a lot in difficulty, models little within one."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 60, prompts).astype(float)
    hard = rng.gamma(2.0, 1.0, prompts)
    teacher = tokens * hard
    base = teacher + tokens * rng.normal(2.0, 0.2, prompts)
    student = teacher + tokens * rng.normal(0.5, 0.1, prompts)
    return teacher, base, student, tokens


def test_recovered_is_the_token_weighted_ratio_inside_its_interval() -> None:
    teacher, base, student, tokens = sums(0)
    found = recovered(teacher, base, student, tokens, Resampler(60, 2000, 0))
    expected = (student.sum() - base.sum()) / (teacher.sum() - base.sum())
    assert found.value == pytest.approx(expected) and found.refused is None
    assert found.ci95 is not None and found.ci95[0] < expected < found.ci95[1]
    assert found.value == pytest.approx(0.75, abs=0.03)


def test_pairing_makes_the_interval_narrow_though_prompts_differ_much() -> None:
    teacher, base, student, tokens = sums(1)
    resampler = Resampler(60, 2000, 0)
    paired = recovered(teacher, base, student, tokens, resampler).ci95
    shuffled = np.random.default_rng(5).permutation(60)
    unpaired = recovered(teacher, base[shuffled], student, tokens, resampler)
    assert paired is not None and paired[1] - paired[0] < 0.05
    assert unpaired.ci95 is None or unpaired.ci95[1] - unpaired.ci95[0] > 4 * (paired[1] - paired[0])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        teacher, base, student, tokens = sums(seed)
        ci = recovered(teacher, base, student, tokens, Resampler(60, 400, seed)).ci95
        assert ci is not None
        hits += ci[0] <= 0.75 <= ci[1]
    assert 0.88 <= hits / 200 <= 0.99


def test_teacher_and_base_alike_is_refused() -> None:
    teacher, _, student, tokens = sums(0)
    noise = np.random.default_rng(0).normal(0, 1, 60) * tokens
    noise -= noise.mean()
    found = recovered(teacher, teacher + noise, student, tokens, Resampler(60, 500, 0))
    assert found.value is None and found.ci95 is None and "cannot be told apart" in (found.refused or "")


@pytest.mark.parametrize("gap", [MIN_GAP * 0.9, -0.5])
def test_a_gap_too_small_or_of_the_wrong_sign_is_refused_however_certain(gap: float) -> None:
    teacher, _, student, tokens = sums(0)
    found = recovered(teacher, teacher + gap * tokens, student, tokens, Resampler(60, 500, 0))
    assert found.value is None and "not ahead" in (found.refused or "")


def test_one_prompt_has_no_interval() -> None:
    one = np.array([3.0])
    assert recovered(one, one + 5, one + 1, one, Resampler(1, 500, 0)).refused is not None
    assert Resampler(1, 500, 0).interval(lambda a: a, one) is None


def test_the_same_seed_gives_the_same_interval_and_batches_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, base, student, tokens = sums(3)
    first = recovered(teacher, base, student, tokens, Resampler(60, 500, 9))
    assert recovered(teacher, base, student, tokens, Resampler(60, 500, 9)) == first
    assert recovered(teacher, base, student, tokens, Resampler(60, 500, 10)).ci95 != first.ci95
    monkeypatch.setattr("spiritsafe.evaluate._bootstrap._CELLS", 60 * 7)
    batched = recovered(teacher, base, student, tokens, Resampler(60, 500, 9))
    assert batched.ci95 == pytest.approx(first.ci95)


@given(st.floats(0.1, 10), st.floats(-3, 3))
def test_recovered_ignores_units_and_what_all_models_share(scale: float, shift: float) -> None:
    teacher, base, student, tokens = sums(2)
    resampler = Resampler(60, 200, 0)
    plain = recovered(teacher, base, student, tokens, resampler)
    moved = recovered(
        *(scale * x + shift * scale * tokens for x in (teacher, base, student)), scale * tokens, resampler
    )
    assert moved.value == pytest.approx(plain.value) and moved.ci95 == pytest.approx(plain.ci95)
