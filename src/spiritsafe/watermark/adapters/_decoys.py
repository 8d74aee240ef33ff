"""Decoys made when asked for: a thousand detectors with a table each would fill the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

__all__ = ["Decoys"]

D = TypeVar("D")


class Decoys(Sequence[D], Generic[D]):
    """`count` detectors; `make(index)` builds one, and again each time it is asked for."""

    def __init__(self, make: Callable[[int], D], count: int) -> None:
        self._make, self._indices = make, range(count)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> D: ...
    @overload
    def __getitem__(self, index: slice) -> list[D]: ...
    def __getitem__(self, index: int | slice) -> D | list[D]:
        if isinstance(index, slice):
            return [self._make(i) for i in self._indices[index]]
        return self._make(self._indices[index])

    def __iter__(self) -> Iterator[D]:
        return map(self._make, self._indices)
