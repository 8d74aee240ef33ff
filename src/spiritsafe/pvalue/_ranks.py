"""Several ranks at once, each among things of which chance alone chose one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

__all__ = ["decibans", "rank_sum"]


def decibans(rank: int, size: int) -> int:
    """What rank `rank` of `size` is worth: ⌊10 log₁₀(size / rank)⌋, in integers, so that no rounding can differ.

    Raises:
        ValueError: not 1 ≤ rank ≤ size.
    """
    if not 1 <= rank <= size:
        raise ValueError(f"there is no rank {rank} of {size}")
    ratio, worth = size**10 // rank**10, 0
    while ratio >= 10:
        ratio, worth = ratio // 10, worth + 1
    return worth


def rank_sum(ranks_M: Sequence[int], sizes_M: Sequence[int]) -> float:
    """log10 P(the decibans of M independent uniform ranks sum to what these do, or more), exact.

    Where ties count against the rank, or a rank is put too high, it is an upper bound. For one rank of N it is 1/N at
    rank 1, at most a tenth of a decade above rank/N elsewhere. Fisher's −Σ ln p, held against Gamma(M), is a bound too,
    but ranks have a floor: five first places of 1,000 are 1e-15 here and 7e-11 there, ten of 4 are 1e-6 and 0.1.

    0.0 for M = 0.

    Raises:
        ValueError: a rank outside 1 … its size, or lists of different lengths.
    """
    seen = sum(decibans(rank, size) for rank, size in zip(ranks_M, sizes_M, strict=True))
    # All outcomes, counted by their sum, as one number with a digit for each sum. No digit can overflow, not even the
    # sum of all of them.
    outcomes = math.prod(sizes_M)
    bits = outcomes.bit_length()
    law = 1
    for size, times in sorted(Counter(sizes_M).items()):
        worths = Counter(decibans(rank, size) for rank in range(1, size + 1))
        law *= sum(count << bits * worth for worth, count in worths.items()) ** times
    reached = law >> bits * seen
    while (digits := -(-reached.bit_length() // bits)) > 1:  # add the upper half of the digits to the lower
        half = bits * (digits + 1 >> 1)
        reached = (reached >> half) + (reached & (1 << half) - 1)
    return min(math.log10(reached) - math.log10(outcomes), 0.0) + 0.0
