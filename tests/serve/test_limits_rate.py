"""GCRA with corrections, against a model that replays everything that ever happened."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limits_kit import level_of
from spiritsafe.serve._limits import _rate
from spiritsafe.serve._limits._rate import PERIOD_MS, Rate

steps = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 7, 100, 1000, 20_000]),  # ms that pass
        st.sampled_from(["take", "take", "close"]),
        st.integers(0, 1000),  # amount, or which ticket
        st.integers(0, 1100),  # taken in truth, in thousandths of the amount
    ),
    max_size=60,
)


class Replayed:
    """A rate beside its whole history, in which a closed reservation stands with what it took in truth."""

    def __init__(self, size: int, now: int) -> None:
        self.rate, self.size, self.now = Rate(now), size, now
        self.events: list[list[int]] = []
        self.open: list[tuple[int, int, int]] = []  # number, index of its event, amount

    def take(self, amount: int) -> None:
        self.rate.drain(self.now, self.size)
        self.open.append((self.rate.take(amount), len(self.events), amount))
        self.events.append([self.now, amount])

    def close(self, which: int, thousandths: int) -> None:
        number, index, amount = self.open.pop(which % len(self.open))
        taken = amount * thousandths // 1000
        self.rate.drain(self.now, self.size)
        self.rate.close(number, amount - taken)
        if taken <= amount:
            self.events[index][1] = taken
        else:  # what was not reserved counts from when it is known
            self.events.append([self.now, taken - amount])

    @property
    def true_level(self) -> int:
        return level_of([(when, amount) for when, amount in self.events], self.now, self.size)


def play(size: int, history: list[tuple[int, str, int, int]]) -> Replayed:
    replayed, merged = Replayed(size, 5000), False
    for passed, what, number, thousandths in history:
        replayed.now += passed
        if what == "take":
            replayed.take(number * size // 1000)
        elif replayed.open:
            replayed.close(number, thousandths)
        replayed.rate.drain(replayed.now, size)
        assert replayed.rate.level >= replayed.true_level  # never gives more back than was taken
        merged = merged or len(replayed.rate.lows) >= _rate.MOST_LOWS
        assert merged or replayed.rate.level == replayed.true_level
    return replayed


@given(size=st.sampled_from([1, 7, 60, 1000, 10**11]), history=steps)
@settings(max_examples=400, deadline=None)
def test_the_level_is_what_it_would_be_had_the_true_amounts_been_known(
    size: int, history: list[tuple[int, str, int, int]]
) -> None:
    play(size, history)


def test_histories_with_many_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rate, "MOST_LOWS", 1000)
    rng = random.Random(5)
    for _ in range(600):
        size = rng.choice([60, 1000])
        history = [
            (
                rng.choice([0, 1, 100, 1000, 5000]),
                rng.choice(["take", "take", "close"]),
                rng.randrange(300),
                rng.choice([0, 0, 500, 1000, 1050]),
            )
            for _ in range(50)
        ]
        play(
            size,
            [(passed, what, rng.randrange(1000) if what == "close" else n, part) for passed, what, n, part in history],
        )


@given(size=st.sampled_from([60, 1000]), history=steps, most=st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_with_few_minima_kept_it_never_gives_more_back(
    size: int, history: list[tuple[int, str, int, int]], most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rate, "MOST_LOWS", most)
        replayed = Replayed(size, 5000)
        for passed, what, number, thousandths in history:
            replayed.now += passed
            if what == "take":
                replayed.take(number * size // 1000)
            elif replayed.open:
                replayed.close(number, thousandths)
            replayed.rate.drain(replayed.now, size)
            assert replayed.rate.level >= replayed.true_level
            assert len(replayed.rate.lows) <= most
            assert sum(low[2] for low in replayed.rate.lows) + replayed.rate.fresh == len(replayed.open)


@given(size=st.sampled_from([60, 1000]), history=steps)
@settings(max_examples=200, deadline=None)
def test_a_refund_at_once_restores_exactly(size: int, history: list[tuple[int, str, int, int]]) -> None:
    rate = play(size, history).rate
    before = rate.level
    rate.close(rate.take(size), size)
    assert rate.level == before


def test_reserving_much_and_using_little_does_not_double_the_rate() -> None:
    """What taking the difference from the level would allow: the phantom drains, and is then given back again."""
    size, now = 100, 0
    rate = Rate(now)
    phantom = rate.take(100)
    now = 60_000
    rate.drain(now, size)
    rate.take(100)  # a real burst, as the bucket has drained
    rate.close(phantom, 100)
    assert rate.level == 100 * PERIOD_MS  # the burst still counts in full


def test_a_clock_that_goes_back_drains_nothing_and_holds_up_for_the_step_only() -> None:
    rate = Rate(100_000)
    rate.take(60)
    levels = []
    for now in (40_000, 100_000, 101_000):
        rate.drain(now, 60)
        levels.append(rate.level)
    assert levels == [60 * PERIOD_MS, 60 * PERIOD_MS, 59 * PERIOD_MS]


def test_a_bucket_made_anew_ignores_reservations_of_the_old_one() -> None:
    old = Rate(1000)
    number = old.take(5)
    new = Rate(200_000)
    new.take(7)
    new.close(number, 5)
    assert (new.level, new.fresh) == (7 * PERIOD_MS, 1)


@given(
    size=st.integers(1, 500),
    requests=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 300)), min_size=1, max_size=80),
)
@settings(max_examples=200, deadline=None)
def test_no_interval_lets_more_through_than_a_burst_and_the_rate(size: int, requests: list[Any]) -> None:
    rate, now = Rate(0), 0
    passed: list[tuple[int, int]] = []
    for wait, amount in requests:
        now += wait
        rate.drain(now, size)
        if rate.level + amount * PERIOD_MS <= size * PERIOD_MS:
            rate.take(amount)
            passed.append((now, amount))
    for first in range(len(passed)):
        through = 0
        for when, amount in passed[first:]:
            through += amount
            assert through * PERIOD_MS <= size * PERIOD_MS + (when - passed[first][0]) * size
