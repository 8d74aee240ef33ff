"""Counting hidden units and coordinates of two models that stand in the same place.

A model's hidden units come in a random order: units are initialised alike and independently, and optimisers treat them
alike, so every order is as likely as any other; the same holds for the coordinates of the residual stream. A unit of
one model "is found in its place" in another if the unit of the same number there is closer to it than every other is,
and the other way round. In models that were initialised apart about one unit of a layer is, by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spiritsafe.audit.tests._tensors import F32, Decoder

__all__ = ["Count", "align", "coordinates", "in_place", "own_change", "units"]

_SKETCH = 256  # units of a layer that its counterpart is chosen by
_TOKENS = 8192  # rows of the embedding that coordinates are compared by
_ROWS = 2048  # rows of a similarity matrix held at once
_MARGIN = 1e-5  # a tie is no match: which of two equals comes first depends on their places


@dataclass(frozen=True, slots=True)
class Count:
    """found: things in their place, of `of`, in `orders` independent orders, each held against `choices` others."""

    found: int
    of: int
    orders: int
    choices: int = 1


def align(of: Decoder, among: Decoder) -> list[int]:
    """For each layer of `of`, the layer of `among` whose first units are most like its own; by position where both
    have as many layers. Looks at no unit's place except through this choice, which `Count.choices` pays for."""
    if of.units == among.units:
        return list(range(len(of.units)))
    sketches = [_rows(among, layer, _SKETCH) for layer in range(len(among.units))]
    chosen = []
    for layer, h in enumerate(of.units):
        mine = _rows(of, layer, _SKETCH)
        like = [
            float(np.vdot(mine, sketch)) if among.units[i] == h and sketch.shape == mine.shape else -np.inf
            for i, sketch in enumerate(sketches)
        ]
        chosen.append(int(np.argmax(like)) if max(like) > -np.inf else -1)
    return chosen


def units(teacher: Decoder, other: Decoder) -> Count | None:
    """Hidden units of the teacher found in their place in `other`; None where no layers have the same shape.

    Every layer of the teacher is an order of its own and counts once, against the one layer chosen for it.
    """
    if teacher.width != other.width:
        return None
    found = of = orders = 0
    for layer, counterpart in enumerate(align(teacher, other)):
        if counterpart < 0:
            continue
        mine, theirs = _rows(teacher, layer), _rows(other, counterpart)
        if mine.shape != theirs.shape:
            continue
        found += in_place(mine, theirs)
        of += len(mine)
        orders += 1
    choices = 1 if teacher.units == other.units else len(other.units)
    return Count(found, of, orders, choices) if orders else None


def coordinates(teacher: Decoder, other: Decoder) -> Count | None:
    """Coordinates of the residual stream found in their place, by the columns of the token embeddings; None where the
    widths differ or there is no embedding. It does not notice reordered or missing hidden units and layers."""
    mine, theirs = teacher.embedding(_TOKENS), other.embedding(_TOKENS)
    if mine is None or theirs is None or mine.shape[1] != theirs.shape[1]:
        return None
    tokens = min(len(mine), len(theirs))
    found = in_place(_unit_length(mine[:tokens].T), _unit_length(theirs[:tokens].T))
    return Count(found, mine.shape[1], 1)


def own_change(base: Decoder, teacher: Decoder, other: Decoder) -> tuple[float, float] | None:
    """How much of what the teacher changed in its base is in `other`: (sum of ⟨other − base, teacher − base⟩, sum of
    |teacher − base|²) over the layers they share; their ratio is 0 for the base and 1 for the teacher.

    None where teacher and base differ in shape, or the teacher changed nothing. Layers of `other` are held against
    those of the base that they are most like, so that nothing is chosen to please the teacher.
    """
    if base.units != teacher.units or not base.width == teacher.width == other.width:
        return None
    common = moved = 0.0
    for layer, counterpart in enumerate(align(other, base)):
        if counterpart < 0:
            continue
        for b, t, o in zip(
            base.matrices(counterpart), teacher.matrices(counterpart), other.matrices(layer), strict=False
        ):
            if b.shape == t.shape == o.shape:
                change = (t - b).ravel()
                common += float(np.dot((o - b).ravel(), change))
                moved += float(np.dot(change, change))
    return (common, moved) if 1e-150 < moved < 1e150 and abs(common) < 1e150 else None


def in_place(a_HD: F32, b_HD: F32) -> int:
    """How many i have a[i]·b[i] above every a[i]·b[j] and a[j]·b[i]. Holds `_ROWS` rows of the products at a time."""
    h = len(a_HD)
    own = np.einsum("hd,hd->h", a_HD, b_HD)
    across = np.full(h, -np.inf, np.float32)
    down = np.full(h, -np.inf, np.float32)
    for at in range(0, h, _ROWS):
        block = a_HD[at : at + _ROWS] @ b_HD.T
        rows = np.arange(len(block))
        block[rows, at + rows] = -np.inf
        across[at : at + _ROWS] = block.max(axis=1)
        np.maximum(down, block.max(axis=0), out=down)
    return int(np.count_nonzero((own > across + _MARGIN) & (own > down + _MARGIN)))


def _rows(decoder: Decoder, layer: int, units: int | None = None) -> F32:
    """What makes a unit known again, (h, d or 2d): its gate and its up row, each of length 1."""
    return np.concatenate([_unit_length(m) for m in decoder.matrices(layer, units)], axis=1)


def _unit_length(rows: F32) -> F32:
    with np.errstate(over="ignore"):
        length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-30), np.float32)
