"""The budget never passes a cap, whatever the order of events."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from spiritsafe.errors import Refused
from spiritsafe.spend import Budget, Caps, OverBudget, Spend, Ticket, pico_dollars

CAPS = Caps(usd=1e-9, tokens=500, requests=20)  # 1,000 pico-dollars
amounts = st.builds(Spend, pico=st.integers(0, 400), tokens=st.integers(0, 200), requests=st.integers(0, 3))
part = st.floats(0, 1)


class AnyOrder(RuleBasedStateMachine):
    """Arbitrary interleavings of reserve, settle and refund, against a model that just adds up."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(CAPS)
        self.open: list[Ticket] = []
        self.spent = Spend()

    @rule(target=tickets, amount=amounts)
    def reserve(self, amount: Spend) -> Ticket | None:
        total = self.spent + sum((t.amount for t in self.open), Spend()) + amount
        fits = total.pico <= 1000 and total.tokens <= 500 and total.requests <= 20
        if not fits:
            with pytest.raises(OverBudget):
                self.budget.reserve(amount)
            return None
        ticket = self.budget.reserve(amount)
        self.open.append(ticket)
        return ticket

    @rule(ticket=consumes(tickets), p=part, q=part)
    def settle(self, ticket: Ticket | None, p: float, q: float) -> None:
        if ticket is not None:
            actual = Spend(int(ticket.amount.pico * p), int(ticket.amount.tokens * q), ticket.amount.requests)
            self.budget.settle(ticket, actual)
            self.open.remove(ticket)
            self.spent += actual

    @rule(ticket=consumes(tickets))
    def refund(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            self.budget.refund(ticket)
            self.open.remove(ticket)
            with pytest.raises(ValueError, match="already closed"):
                self.budget.refund(ticket)

    @invariant()
    def never_over(self) -> None:
        assert self.budget.spent == self.spent
        assert self.budget.reserved == sum((t.amount for t in self.open), Spend())
        total = self.budget.spent + self.budget.reserved
        assert total.pico <= 1000 and total.tokens <= 500 and total.requests <= 20


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def test_threads_that_reserve_together_stay_under_the_cap() -> None:
    budget = Budget(Caps(requests=100))
    granted = []

    def work() -> None:
        for _ in range(50):
            try:
                granted.append(budget.reserve(Spend(requests=1)))
            except OverBudget:
                return

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 100


@pytest.mark.parametrize(
    ("caps", "amount", "cap", "says"),
    [
        (Caps(usd=0.5), Spend(pico=pico_dollars(0.51)), "usd", "collect.budget_usd of $0.5 is used up: $0 spent"),
        (Caps(tokens=10), Spend(tokens=11), "tokens", "the cap on tokens of 10 tokens"),
        (Caps(requests=1), Spend(requests=2), "requests", "raise it to go on"),
        (Caps(usd=0), Spend(pico=1), "usd", "collect.budget_usd is 0, so nothing may be spent"),
    ],
)
def test_a_refusal_names_the_cap_and_what_to_raise(caps: Caps, amount: Spend, cap: str, says: str) -> None:
    budget = Budget(caps, names={"usd": "collect.budget_usd"})
    with pytest.raises(Refused) as refusal:
        budget.reserve(amount)
    assert says in str(refusal.value)
    assert isinstance(refusal.value, OverBudget) and refusal.value.cap == cap and refusal.value.final
    assert refusal.value.exit_code == 3


def test_a_refusal_is_not_final_while_running_calls_may_give_room_back() -> None:
    budget = Budget(Caps(tokens=100))
    ticket = budget.reserve(Spend(tokens=80))
    with pytest.raises(OverBudget) as refusal:
        budget.reserve(Spend(tokens=80))
    assert not refusal.value.final
    budget.settle(ticket, Spend(tokens=10))
    budget.reserve(Spend(tokens=80))


def test_time_is_a_cap_too() -> None:
    now = [0.0]
    budget = Budget(Caps(seconds=10), clock=lambda: now[0])
    budget.refund(budget.reserve(Spend()))
    now[0] = 10.0
    with pytest.raises(OverBudget, match="seconds of 10 seconds is used up"):
        budget.reserve(Spend())


def test_zero_cost_fits_a_zero_budget() -> None:
    Budget(Caps(usd=0)).reserve(Spend(tokens=5, requests=1))


def test_a_bill_above_the_reservation_is_recorded_and_stops_what_follows() -> None:
    budget = Budget(Caps(tokens=100))
    budget.settle(budget.reserve(Spend(tokens=50)), Spend(tokens=120))
    assert budget.spent.tokens == 120
    with pytest.raises(OverBudget):
        budget.reserve(Spend(tokens=1))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_earlier_sessions_count(spent: int, wanted: int) -> None:
    budget = Budget(Caps(tokens=10**6), spent=Spend(tokens=spent))
    if spent + wanted <= 10**6:
        budget.reserve(Spend(tokens=wanted))
    else:
        with pytest.raises(OverBudget):
            budget.reserve(Spend(tokens=wanted))
