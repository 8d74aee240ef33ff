"""Adaptive concurrency: up while it works, half on trouble, quiet while told to wait."""

from __future__ import annotations

from spiritsafe.collect._limiter import Limiter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def succeed(limiter: Limiter, times: int) -> None:
    for _ in range(times):
        limiter.succeeded(0.1, limiter.limit)


def test_doubles_a_round_trip_until_the_first_trouble_then_adds_one() -> None:
    clock = Clock()
    limiter = Limiter(None, patience=30, clock=clock)
    assert limiter.limit == 8
    succeed(limiter, 8)
    assert limiter.limit == 16
    clock.now = 1
    limiter.congested(started=0.5, retry_after=None)
    assert limiter.limit == 8
    succeed(limiter, 9)
    assert limiter.limit == 9


def test_a_burst_of_failures_counts_once() -> None:
    clock = Clock()
    limiter = Limiter(None, patience=30, clock=clock)
    clock.now = 1
    for _ in range(8):
        limiter.congested(started=0.5, retry_after=None)
    assert limiter.limit == 4
    clock.now = 2
    limiter.congested(started=1.5, retry_after=None)
    assert limiter.limit == 2


def test_never_below_one_and_never_above_the_most() -> None:
    clock = Clock()
    limiter = Limiter(None, patience=30, clock=clock)
    succeed(limiter, 5000)
    assert limiter.limit == 512
    for _ in range(20):
        clock.now += 1
        limiter.congested(started=clock.now, retry_after=None)
    assert limiter.limit == 1


def test_unused_room_and_slow_answers_do_not_raise_it() -> None:
    limiter = Limiter(None, patience=30)
    for _ in range(100):
        limiter.succeeded(0.1, in_flight=3)
        limiter.succeeded(31.0, in_flight=8)
    assert limiter.limit == 8
    assert limiter.highest == 8


def test_retry_after_is_honoured_and_the_longest_wins() -> None:
    clock = Clock()
    limiter = Limiter(None, patience=30, clock=clock)
    limiter.congested(0, retry_after=5)
    limiter.congested(0, retry_after=2)
    assert limiter.pause() == 5
    clock.now = 5
    assert limiter.pause() == 0


def test_a_fixed_number_stays() -> None:
    limiter = Limiter(3, patience=30)
    succeed(limiter, 50)
    limiter.congested(0, retry_after=1)
    assert limiter.limit == 3
    assert limiter.pause() > 0


def test_trouble_after_trouble_pauses_everyone_longer_each_time() -> None:
    clock = Clock()
    limiter = Limiter(None, patience=30, clock=clock)
    pauses = []
    for _ in range(5):
        clock.now += 100
        limiter.congested(started=clock.now, retry_after=None)
        pauses.append(limiter.pause())
    assert pauses == [0, 0.5, 1, 2, 4]
    assert limiter.strikes == 5
    limiter.succeeded(0.1, 1)
    assert limiter.strikes == 0
