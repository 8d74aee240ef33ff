"""Prices in exact integers: pico-dollars (10⁻¹² USD), so that sums of millions of calls neither drift nor round."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from functools import cached_property
from typing import Annotated

from pydantic import Field

from spiritsafe.config import StrictModel
from spiritsafe.records import Usage

__all__ = ["FREE", "PICO", "Price", "dollars", "pico_dollars"]

PICO = 10**12
_PER_TOKEN = PICO // 10**6  # pico-dollars per token, for each dollar per million tokens

PerMtok = Annotated[Decimal, Field(ge=0, le=10**6, allow_inf_nan=False)]


def dollars(pico: int) -> float:
    """Pico-dollars as dollars, for people and JSON."""
    return pico / PICO


def pico_dollars(usd: float | Decimal) -> int:
    """Dollars as pico-dollars. A float counts as the decimal it prints as: 0.1 is exactly a tenth."""
    return int(Decimal(str(usd)) * PICO)


class Price(StrictModel):
    """What a teacher charges, in USD per million tokens.

    cached_per_mtok: input read from the provider's cache; as `input_per_mtok` if not given.
    reasoning_per_mtok: hidden reasoning; as `output_per_mtok` if not given.
    batch_discount: the part taken off in the provider's batch mode, 0 to 1.
    """

    input_per_mtok: PerMtok
    output_per_mtok: PerMtok
    cached_per_mtok: PerMtok | None = None
    reasoning_per_mtok: PerMtok | None = None
    batch_discount: Annotated[Decimal, Field(ge=0, le=1)] = Decimal(0)

    def cost(self, usage: Usage, *, batch: bool = False) -> int:
        """Pico-dollars of one call, rounded up."""
        cached = min(usage.cached_tokens, usage.input_tokens)
        reasoning = min(usage.reasoning_tokens, usage.output_tokens)
        rates = self._rates
        total = (
            (usage.input_tokens - cached) * rates[0]
            + cached * rates[1]
            + (usage.output_tokens - reasoning) * rates[2]
            + reasoning * rates[3]
        )
        return self._discounted(total) if batch else total

    def worst_case(self, input_tokens_bound: int, output_tokens_bound: int, *, batch: bool = False) -> int:
        """Pico-dollars that a call with at most so many tokens can cost: nothing cached in our favour, all of it
        billed at the dearer rate. Never below `cost` of any usage within the bounds."""
        rates = self._rates
        total = input_tokens_bound * max(rates[:2]) + output_tokens_bound * max(rates[2:])
        return self._discounted(total) if batch else total

    @property
    def free(self) -> bool:
        return not any(self._rates)

    @cached_property
    def _rates(self) -> tuple[int, int, int, int]:
        """Pico-dollars per token: input, cached, output, reasoning."""
        cached = self.input_per_mtok if self.cached_per_mtok is None else self.cached_per_mtok
        reasoning = self.output_per_mtok if self.reasoning_per_mtok is None else self.reasoning_per_mtok
        each = (self.input_per_mtok, cached, self.output_per_mtok, reasoning)
        fresh, kept, out, thought = (int((r * _PER_TOKEN).to_integral_value(ROUND_CEILING)) for r in each)
        return fresh, kept, out, thought

    def _discounted(self, pico: int) -> int:
        return int((pico * (1 - self.batch_discount)).to_integral_value(ROUND_CEILING))


FREE = Price(input_per_mtok=Decimal(0), output_per_mtok=Decimal(0))
