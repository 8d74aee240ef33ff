"""Keys and values of many running rows, in buffers that grow, instead of a concatenation per layer and step.

A row's token at position p lies at index p of its row, so rows of any length share a batch without padding inside
them: the mask hides what lies beyond a row's own end. A finished row's place is taken by the last row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

__all__ = ["SlotCache", "prefill_cache"]

_MIN_LENGTH = 64


def prefill_cache() -> Any:
    """A cache that keeps every position of every layer, sliding-window layers too (their mask does the windowing)."""
    return Cache(layer_class_to_replicate=DynamicLayer)


class _View:
    """What the next forward pass writes and reads; shared by all layers.

    rows: (B,) row numbers.  positions: (B,) where each row's new token goes.  end: 1 + the largest of them.
    aligned: all positions are equal, so a slice replaces the scatter.
    """

    def __init__(self) -> None:
        self.rows = self.positions = torch.empty(0, dtype=torch.long)
        self.end = 0
        self.aligned = True


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """Buffers of one layer: keys and values (rows, heads, length, head dim)."""

    is_sliding = False

    def __init__(self, view: _View) -> None:
        super().__init__()
        self.view = view
        self.keys: torch.Tensor = torch.empty(0)
        self.values: torch.Tensor = torch.empty(0)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise RuntimeError("rows are put in with SlotCache.add")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        view, count = self.view, key_states.shape[0]
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            if view.aligned:
                buffer[:count, :, view.end - 1 : view.end] = new
            else:
                buffer[view.rows, :, view.positions] = new[:, :, 0]
        return self.keys[:count, :, : view.end], self.values[:count, :, : view.end]

    def get_seq_length(self) -> int:
        return self.view.end - 1

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.view.end, 0

    def place(self, filled: Any, source: int, row: int, length: int) -> None:
        """Copy `length` positions of row `source` of a prefilled layer into `row`."""
        self.keys[row, :, :length] = filled.keys[source, :, :length]
        self.values[row, :, :length] = filled.values[source, :, :length]

    def grow(self, shape: tuple[int, int], like: Any) -> None:
        self.keys, self.values = _grown(self.keys, like.keys, shape), _grown(self.values, like.values, shape)

    def move(self, source: int, row: int, length: int) -> None:
        self.keys[row, :, :length] = self.keys[source, :, :length]
        self.values[row, :, :length] = self.values[source, :, :length]


class SlotCache:
    """Rows 0 … len(lengths)-1 are in use; `lengths[r]` positions of row r are filled."""

    def __init__(self, device: torch.device) -> None:
        self.lengths: list[int] = []
        self._device = device
        self._shape = (0, 0)
        self._view = _View()
        self._layers: list[_Layer] = []

    def reserve(self, rows: int, length: int, like: Any) -> None:
        """Make room for `rows` more rows of up to `length` positions, shaped and typed like a prefilled cache."""
        if not self._layers:
            self._layers = [_Layer(self._view) for _ in like.layers]
        self._grow(len(self.lengths) + rows, length, like.layers)

    def add(self, filled: Any, source: int, length: int) -> None:
        """Append a row, for which there is room: row `source` of a prefilled cache, its first `length` positions."""
        for layer, full in zip(self._layers, filled.layers, strict=True):
            layer.place(full, source, len(self.lengths), length)
        self.lengths.append(length)

    def remove(self, row: int) -> None:
        """Drop a row; the last row takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in self._layers:
                layer.move(last, row, self.lengths[last])
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:  # an idle engine holds no memory
            self._layers, self._shape = [], (0, 0)

    def step(self) -> tuple[Any, torch.Tensor]:
        """Make ready for one new token per row.

        Returns the cache to pass to the model and positions (B, 1); the rows count as one longer from here on.
        """
        end = max(self.lengths) + 1
        self._grow(len(self.lengths), end, self._layers)
        view = self._view
        view.positions = torch.tensor(self.lengths, device=self._device)
        view.rows = torch.arange(len(self.lengths), device=self._device)
        view.end = end
        view.aligned = min(self.lengths) + 1 == end
        self.lengths = [length + 1 for length in self.lengths]
        return Cache(layers=self._layers), view.positions[:, None]

    def mask(self, window: int | None = None) -> torch.Tensor | None:
        """(B, 1, 1, end) bool, True where a row may look; None if every row may look everywhere."""
        view = self._view
        if view.aligned and (window is None or view.end <= window):
            return None
        index = torch.arange(view.end, device=self._device)
        seen = index <= view.positions[:, None]
        if window is not None:
            seen &= index > view.positions[:, None] - window
        return seen[:, None, None, :]

    def _grow(self, rows: int, length: int, like: Sequence[Any]) -> None:
        have_rows, have_length = self._shape
        if rows <= have_rows and length <= have_length:
            return
        if rows > have_rows:
            have_rows = max(rows, 2 * have_rows)
        if length > have_length:
            have_length = max(length, 2 * have_length, _MIN_LENGTH)
        self._shape = (have_rows, have_length)
        for layer, model in zip(self._layers, like, strict=True):
            layer.grow(self._shape, model)


def _grown(buffer: torch.Tensor, like: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    rows, length = shape
    new = like.new_zeros((rows, like.shape[1], length, like.shape[3]))
    if buffer.numel():
        new[: buffer.shape[0], :, : buffer.shape[2]] = buffer
    return new
