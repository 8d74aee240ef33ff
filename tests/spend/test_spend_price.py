"""Prices: exact, and the worst case really is the worst."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from spiritsafe.records import Usage
from spiritsafe.spend import FREE, PICO, Price, dollars, pico_dollars

rates = st.decimals(min_value=0, max_value=1000, places=4)
tokens = st.integers(0, 10**7)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    return Price(
        input_per_mtok=draw(rates),
        output_per_mtok=draw(rates),
        cached_per_mtok=draw(st.none() | rates),
        reasoning_per_mtok=draw(st.none() | rates),
        batch_discount=draw(st.decimals(min_value=0, max_value=1, places=2)),
    )


def test_a_million_tokens_cost_the_list_price_exactly() -> None:
    price = Price(input_per_mtok=Decimal("0.15"), output_per_mtok=Decimal("0.60"))
    assert price.cost(Usage(10**6, 0)) == pico_dollars(0.15) == 15 * PICO // 100
    assert price.cost(Usage(0, 10**6)) == pico_dollars(0.60)
    # Ten million single tokens add up to the same: no rounding anywhere.
    assert sum(price.cost(Usage(1, 0)) for _ in range(1000)) == price.cost(Usage(1000, 0))


def test_cached_reasoning_and_batch_have_their_own_rates() -> None:
    price = Price.model_validate(
        {
            "input_per_mtok": 1,
            "output_per_mtok": 10,
            "cached_per_mtok": 0.1,
            "reasoning_per_mtok": 20,
            "batch_discount": 0.5,
        }
    )
    usage = Usage(1000, 100, cached_tokens=400, reasoning_tokens=60)
    expected = 600 * 1 + 400 * Decimal("0.1") + 40 * 10 + 60 * 20
    assert price.cost(usage) == expected * 10**6
    assert price.cost(usage, batch=True) == expected * 10**6 / 2


def test_yaml_floats_mean_the_decimal_they_print_as() -> None:
    price = Price.model_validate({"input_per_mtok": 0.1, "output_per_mtok": 0.3})
    assert price.cost(Usage(1, 1)) == 400_000


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf")])
def test_a_price_that_is_no_price_is_refused(bad: float) -> None:
    with pytest.raises(ValidationError):
        Price.model_validate({"input_per_mtok": bad, "output_per_mtok": 1})


@given(prices(), tokens, tokens, tokens, tokens, st.booleans())
def test_no_usage_within_the_bounds_costs_more_than_the_worst_case(
    price: Price, bound_in: int, bound_out: int, cached: int, reasoning: int, batch: bool
) -> None:
    usage = Usage(bound_in, bound_out, cached, reasoning)
    assert price.cost(usage, batch=batch) <= price.worst_case(bound_in, bound_out, batch=batch)


def test_free_is_free_and_says_so() -> None:
    assert FREE.free
    assert FREE.worst_case(10**9, 10**9) == 0
    assert not Price(input_per_mtok=Decimal(0), output_per_mtok=Decimal("0.01")).free
    assert dollars(PICO) == 1.0
