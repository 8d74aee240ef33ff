"""First occurrences: exact against Python's own sets, through growing and partitioning, in little memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe.watermark import _seen
from spiritsafe.watermark._seen import DocumentSeen, Seen

_PHI, _M1, _M2, _WORD = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 2**64
INPUTS = st.one_of(st.integers(0, 3), st.integers(0, _WORD - 1), st.integers(_WORD - 3, _WORD - 1))


def firsts(values: list[int], seen: set[int]) -> list[bool]:
    """The reference."""
    mask = []
    for value in values:
        mask.append(value not in seen)
        seen.add(value)
    return mask


def input_of_zero() -> int:
    """The one input whose image is 0, which marks empty slots: splitmix64 run backwards."""

    def unshift(z: int, by: int) -> int:
        x = z
        for _ in range(64 // by + 1):
            x = z ^ (x >> by)
        return x

    z = unshift(0, 31) * pow(_M2, -1, _WORD) % _WORD
    z = unshift(z, 27) * pow(_M1, -1, _WORD) % _WORD
    return (unshift(z, 30) - _PHI) % _WORD


@settings(deadline=None)  # the first call compiles
@given(st.lists(INPUTS, max_size=60))
def test_within_a_document(values: list[int]) -> None:
    assert DocumentSeen().first(np.array(values, np.uint64)).tolist() == firsts(values, set())


def test_a_document_forgets_the_one_before() -> None:
    document = DocumentSeen()
    random = np.random.default_rng(0)
    for size in (5000, 3, 900, 0, 5000):
        values = random.integers(0, 700, size).astype(np.uint64)
        assert document.first(values).tolist() == firsts(values.tolist(), set())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(INPUTS, max_size=40), max_size=6), st.sampled_from([0, 8, 1 << 20]))
def test_across_documents(batches: list[list[int]], split_above: int) -> None:
    """Whether partitioned from the start, midway or never."""
    reference: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_seen, "_SPLIT_ABOVE", split_above)
        seen = Seen()
        for batch in batches:
            assert seen.add(np.array(batch, np.uint64)).tolist() == firsts(batch, reference)
            assert len(seen) == len(reference)


@pytest.mark.parametrize("split_above", [0, 1 << 20])
def test_the_input_that_looks_like_an_empty_slot(split_above: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_seen, "_SPLIT_ABOVE", split_above)
    odd = input_of_zero()
    assert int(_seen._spread_all(np.array([odd], np.uint64))[0]) == 0
    values = np.array([odd, 1, odd], np.uint64)
    assert DocumentSeen().first(values).tolist() == [True, True, False]
    seen = Seen()
    assert seen.add(values).tolist() == [True, True, False]
    assert seen.add(values).tolist() == [False, False, False]
    assert len(seen) == 2


def test_many_structured_inputs_in_little_memory() -> None:
    """Two million multiples of 2^20, over the splitting point: exact, at most 23 bytes an input while growing."""
    seen, held = Seen(), 0
    for low in range(0, 2_000_000, 100_000):
        values = np.arange(low, low + 100_000, dtype=np.uint64) << np.uint64(20)
        assert seen.add(values).all()
        assert not seen.add(values[::-1]).any()
        held += len(values)
        assert len(seen) == held
        if held > 1 << 20:
            assert seen.nbytes + seen.growing_nbytes <= 23 * held
    assert seen.nbytes <= 16.5 * held
