"""How many threads a parallel kernel is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numba

__all__ = ["threads_for"]

_WORTH_THREADS = 2_000_000  # scores: some ten milliseconds of one core


@contextlib.contextmanager
def threads_for(scores: int) -> Iterator[None]:
    """One thread where there is little to do: on busy cores, waiting for a second one costs more than the sums."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1 if scores < _WORTH_THREADS else threads)
    try:
        yield
    finally:
        numba.set_num_threads(threads)
