"""The PRF: official SipHash vectors, golden vectors that never change, and three implementations with the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spiritsafe.watermark import _prf, _prf_numpy, _prf_torch

# Aumasson and Bernstein's `vectors_sip64`: key 00 … 0f, messages of 0, 1, 2 … bytes 00 01 02 …; these are the ones of
# 4, 8, 12 and 16 bytes, which is what whole tokens can be.
OFFICIAL = {4: "cf2794e0277187b7", 8: "93f5f5799a932462", 12: "751e8fbc860ee5fb", 16: "3f2acc7f57c29bdb"}
WORDS = st.integers(0, 2**64 - 1)
TOKENS = st.integers(0, 2**32 - 1)


def windows(count: int, k: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.uint32, (count, k), elements=TOKENS)


@pytest.mark.parametrize("size", OFFICIAL)
def test_the_context_hash_is_siphash(size: int) -> None:
    key = _prf.key_words(bytes(range(16)))[0]
    window = np.frombuffer(bytes(range(size)), "<u4").astype(np.uint32)[None]
    expected = int.from_bytes(bytes.fromhex(OFFICIAL[size]), "big")
    assert int(_prf.context_hashes(key, window)[0]) == expected
    assert int(_prf_numpy.context_hashes(key, window)[0]) == expected


def test_golden_vectors_never_change() -> None:
    golden = json.loads((Path(__file__).parent / "vectors/prf_v1.json").read_text())
    assert golden["prf_version"] == _prf.PRF_VERSION
    for row in golden["vectors"]:
        key = _prf.key_words(bytes.fromhex(row["key"]))[0]
        window, token = np.array([row["context"]], np.uint32), np.array([row["token"]], np.uint32)
        assert f"{int(_prf.context_hashes(key, window)[0]):016x}" == row["hash"]
        value = _prf.values(key, window, token)
        assert f"{int(value[0]):016x}" == row["value"]
        assert _prf_numpy.uniforms(value)[0].hex() == row["uniform"]


@given(st.data(), st.integers(1, 9), st.integers(0, 300), WORDS, WORDS)
def test_numba_numpy_and_torch_give_the_same_bits(data: st.DataObject, k: int, count: int, k0: int, k1: int) -> None:
    key = np.array([k0, k1], np.uint64)
    seed = data.draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    window, token = random.integers(0, 2**32, (count, k), np.uint32), random.integers(0, 2**32, count, np.uint32)
    if count:
        window[0], token[0] = data.draw(windows(1, k))[0], data.draw(TOKENS)
    hashes = _prf_numpy.context_hashes(key, window)
    values = _prf_numpy.values(hashes, token)
    np.testing.assert_array_equal(_prf.context_hashes(key, window), hashes)
    np.testing.assert_array_equal(_prf.values(key, window, token), values)
    h = _prf_torch.context_hashes(key, torch.from_numpy(window.astype(np.int64)))
    np.testing.assert_array_equal(_prf_torch.as_unsigned(h), hashes)
    np.testing.assert_array_equal(_prf_torch.as_signed(hashes).numpy(), h.numpy())
    z = _prf_torch.values(h, torch.from_numpy(token.astype(np.int64)))
    np.testing.assert_array_equal(_prf_torch.as_unsigned(z), values)
    np.testing.assert_array_equal(_prf_torch.uniforms(z).numpy(), _prf_numpy.uniforms(values))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_hashing_under_many_keys_is_hashing_under_each(k: int) -> None:
    random = np.random.default_rng(k)
    keys = random.integers(0, 2**64, (_prf.LANES, 2), np.uint64)
    window = random.integers(0, 2**32, (1, k), np.uint32)
    state, out = np.empty((4, len(keys)), np.uint64), np.empty(len(keys), np.uint64)
    words = np.ascontiguousarray(_prf.message_words(window)[:, 0])
    _prf.hash_keys(np.ascontiguousarray(keys.T), words, state, out)
    np.testing.assert_array_equal(out, [_prf.context_hashes(key, window)[0] for key in keys])


@given(WORDS)
def test_uniforms_lie_strictly_between_and_have_exact_complements(z: int) -> None:
    (u,) = _prf_numpy.uniforms(np.array([z], np.uint64))
    assert 0 < u < 1 and (1 - u) + u == 1 and 1 - (1 - u) == u


def test_the_ends_of_the_uniform_are_inside() -> None:
    least, most = _prf_numpy.uniforms(np.array([0, 2**64 - 1], np.uint64))
    assert (least, most) == (2.0**-53, 1 - 2.0**-53)


def test_keys_are_sixteen_bytes() -> None:
    assert _prf.key_words(bytes(48)).shape == (3, 2)
    with pytest.raises(ValueError, match="16 bytes each"):
        _prf.key_words(bytes(17))
