"""Which (context, prediction) pairs of marked texts count: those whose coins no text had used when they were fixed.

A marked text is a path: its token after context w was drawn with the key's coins of w, all of them. A prediction at w
is a function of the suspect and of the text before; it says something about coins that nobody has looked at only if no
text consulted w before. So texts are followed side by side. Each waits at its next context whose coins are unopened;
the context at which the fewest texts wait is opened (of equals, the one that got its last text first): the predictions
of all that wait there are fixed by what was opened earlier, and count, each different one once. Then they go on, and
whoever comes to an opened context later passes it without a score. The common contexts, where many texts can be
gathered, are so opened last. The proof is in design/audit-radioactivity.md.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["countable"]

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


def countable(rows_P: NDArray[Any], tokens_P: NDArray[Any], able_P: Mask, ends_D: I64) -> Mask:
    """True (P,) for the positions that count.

    rows_P: a number for the context of each position, equal for equal coins.  tokens_P: predictions.
    able_P: whether a position may count; one that may not is waited at all the same.
    ends_D: text d has the positions from ends_D[d - 1] up to ends_D[d].
    """
    rows, tokens = (np.unique(values, return_inverse=True)[1].astype(np.int64) for values in (rows_P, tokens_P))
    sizes = [int(numbers.max(initial=-1)) + 1 for numbers in (rows, tokens)]
    mask: Mask = _countable(rows, tokens, np.asarray(able_P, np.bool_), np.asarray(ends_D, np.int64), *sizes)
    return mask


@njit(cache=True)
def _countable(rows_P: I64, tokens_P: I64, able_P: Mask, ends_D: I64, n_rows: int, n_tokens: int) -> Mask:
    mask = np.zeros(rows_P.shape[0], np.bool_)
    opened = np.zeros(n_rows, np.bool_)
    waiting, first, last = np.zeros(n_rows, np.int64), np.full(n_rows, -1), np.full(n_rows, -1)  # a queue a context
    after = np.full(ends_D.shape[0], -1)  # the text behind this one in its queue
    at = np.zeros(ends_D.shape[0], np.int64)
    at[1:] = ends_D[:-1]
    counted = np.full(n_tokens, -1)  # the context at which a token counted last
    heap = [(0, 0, 0)]
    heap.pop()
    arrivals = 0
    moving = np.arange(ends_D.shape[0])
    n_moving = ends_D.shape[0]
    while True:
        for i in range(n_moving):
            d = moving[i]
            while at[d] < ends_D[d] and opened[rows_P[at[d]]]:
                at[d] += 1
            if at[d] == ends_D[d]:
                continue
            row = rows_P[at[d]]
            if waiting[row] == 0:
                first[row] = d
            else:
                after[last[row]] = d
            last[row], after[d] = d, -1
            waiting[row] += 1
            arrivals += 1
            heappush(heap, (waiting[row], arrivals, row))
        row = -1
        while heap:
            size, _, candidate = heappop(heap)
            if not opened[candidate] and waiting[candidate] == size:
                row = candidate
                break
        if row < 0:
            return mask
        opened[row] = True
        n_moving = 0
        d = first[row]
        while d >= 0:
            token = tokens_P[at[d]]
            if able_P[at[d]] and counted[token] != row:
                counted[token] = row
                mask[at[d]] = True
            moving[n_moving] = d
            n_moving += 1
            d = after[d]
