"""vLLM's Gumbel-max marks, single-key and dual-key, as vLLM 0.33.0 writes them.

H0: the text does not depend on the engine's key. What is hashed: the `context_width` tokens the *reply* has before a
token (the prompt never is; −1 stands in before the reply's start) and the token itself. The score of a token is
−ln(1 − u). With two keys it is (1 − α)·s_A + α·s_B, because the request's own random numbers decide which key speaks,
and nobody can know them afterwards. With `deduplicate_contexts` on (the engine's default) a token whose context the
reply has had before is sampled without the mark, so it is not read either: the count is the engine's own detector's.

The tail is exact up to the 2^24 steps of the engine's u, which are charged for (`_CHARGE`). The engine's own dual-key
detector matches moments with a Gamma instead, which overstates the evidence.

Sources: vLLM 0.33.0, v1/watermarking/{gumbel,detector,gpu_sampler}.py and v1/worker/gpu/sample/watermark.py; Aaronson,
"Watermarking of large language models" (2022).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import log
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numba import njit, uint64
from pydantic import Field

from spiritsafe import pvalue
from spiritsafe.config import StrictModel, parse_config
from spiritsafe.errors import BadInput
from spiritsafe.keys import KEY_BYTES, decoy_keys
from spiritsafe.watermark._prf import U32, U64, mix
from spiritsafe.watermark._types import F64, Reading, Scores
from spiritsafe.watermark.adapters import _philox, _two_gammas

__all__ = ["VERSIONS", "VllmDual", "VllmGumbel", "VllmParams"]

VERSIONS = "vLLM 0.33.0"

_NO_TOKEN = 0xFFFFFFFF  # the engine's −1 before a reply's start, as its PRF sees it
_LARGEST_ID = 2**31 - 1
# u exceeds m / 2^24 by at most a step, and −ln(1 − m / 2^24) lies below a unit exponential: a score exceeds one by no
# more than this (a test looks at all 2^24 values).
_CHARGE = 2.0**-24
_HIGHEST = 24 * log(2)


class VllmParams(StrictModel):
    """The fields of vLLM's `WatermarkConfig`, and optionally `vocab_size`, above which no token id is one."""

    key: int = Field(strict=True, ge=0, le=2**64 - 1)
    algorithm: Literal["gumbel", "dual_key_gumbel"] | None = None
    alpha: float = Field(default=0.1, ge=0, le=1)
    context_width: int = Field(default=4, strict=True, ge=1, le=64)
    deduplicate_contexts: Literal["none", "single_turn", "all"] = "single_turn"
    deduplicate_contexts_max_history: int | None = Field(default=8192, strict=True, ge=1)
    prf: Literal["philox"] = "philox"
    allow_target_only_watermarking: bool = False
    vocab_size: int | None = Field(default=None, strict=True, ge=2, le=_LARGEST_ID + 1)


class _Vllm(ABC):
    """What both share: reading, scoring under M keys with weights, decoys."""

    scheme: ClassVar[str]
    algorithm: ClassVar[str]
    trials: Sequence[str | None] = (None,)
    keyed_reading = False

    def __init__(self, params: VllmParams) -> None:
        self.params = params
        self._keys_M2 = self.engine_keys(params.key)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """A detector from the engine's own field names and values.

        Raises:
            BadInput: a field vLLM 0.33.0 does not have or a value it does not accept, or another algorithm's config.
        """
        where = f"{cls.scheme} parameters (fields of {VERSIONS}, the version checked against)"
        parsed = parse_config(dict(params), VllmParams, where)
        if parsed.algorithm not in (None, cls.algorithm):
            other = next(kind.scheme for kind in (VllmGumbel, VllmDual) if kind.algorithm == parsed.algorithm)
            raise BadInput(f"{where}: algorithm is {parsed.algorithm}; use the engine {other}")
        return cls(parsed)

    @property
    @abstractmethod
    def weights_M(self) -> F64:
        """How much the score under each key counts."""

    @abstractmethod
    def engine_keys(self, key: int) -> U32:
        """The PRF keys (M, 2) that the engine makes of its configured key."""

    def read(self, ids_T: U32, first: int) -> Reading:
        """The positions the engine may have marked; ids before `first` are the prompt, which only `all` looks at.

        Raises:
            BadInput: an id that no token of the engine's vocabulary has.
        """
        size = self.params.vocab_size or _LARGEST_ID + 1
        if len(ids_T) and int(ids_T.max()) >= size:
            at = int(np.argmax(ids_T >= size))
            raise BadInput(
                f"token id {ids_T[at]} at position {at} is outside the vocabulary of {size}; wrong tokenizer?"
            )
        width, scope = self.params.context_width, self.params.deduplicate_contexts
        history = self.params.deduplicate_contexts_max_history or len(ids_T) + 1
        begin, skip = (0, first + width) if scope == "all" else (first, first)
        return Reading(*_read(ids_T, begin, skip, width, 0 if scope == "none" else history))

    def scores(self, reading: Reading, trial: int) -> Scores:
        values: F64 = _philox.scores(self._keys_M2, self.weights_M, reading.windows, reading.tokens)
        return Scores(values, np.ones(len(values), np.bool_))

    def decoys(self, seed: bytes, count: int) -> list[Self]:
        return [type(self)(self.params.model_copy(update={"key": key})) for key in self._decoy_ints(seed, count)]

    def decoy_totals(self, reading: Reading, trial: int, seed: bytes, count: int) -> tuple[int, F64]:
        keys_KM2 = np.array([self.engine_keys(key) for key in self._decoy_ints(seed, count)], np.uint32)
        keys_KM2 = keys_KM2.reshape(count, *self._keys_M2.shape)
        return len(reading.tokens), _philox.totals(keys_KM2, self.weights_M, reading.windows, reading.tokens)

    def log10_tail(self, n: int, total: float) -> float:
        if n == 0:
            return 0.0
        return self._log10_sum(n, max(0.0, total - n * _CHARGE))

    def fewest(self, log10_level: float) -> int:
        most = 1
        while self._log10_sum(most, most * _HIGHEST) > log10_level:
            most *= 2
        low = most // 2
        while most - low > 1:
            middle = (low + most) // 2
            low, most = (low, middle) if self._log10_sum(middle, middle * _HIGHEST) <= log10_level else (middle, most)
        return most

    @abstractmethod
    def _log10_sum(self, n: int, total: float) -> float:
        """log10 P(the sum of n scores of exact exponentials ≥ total)."""

    def _decoy_ints(self, seed: bytes, count: int) -> list[int]:
        keys = decoy_keys(seed, self.scheme, count)
        return [int.from_bytes(keys[at : at + 8], "little") for at in range(0, KEY_BYTES * count, KEY_BYTES)]


class VllmGumbel(_Vllm):
    """`algorithm: gumbel`. Σ −ln(1 − u) of n tokens ~ Gamma(n, 1) under H0."""

    scheme = "vllm-gumbel"
    algorithm = "gumbel"
    weights_M = np.ones(1)

    def engine_keys(self, key: int) -> U32:
        return _philox.key_words(key)[None]

    def _log10_sum(self, n: int, total: float) -> float:
        return pvalue.gamma(n, total)


class VllmDual(_Vllm):
    """`algorithm: dual_key_gumbel`, speculative decoding included: drafted tokens carry key A, the others key B.

    Σ (1 − α)·s_A + α·s_B of n tokens ~ (1 − α)·Gamma(n) + α·Gamma(n) under H0: hypoexponential.
    """

    scheme = "vllm-dual"
    algorithm = "dual_key_gumbel"

    @property
    def weights_M(self) -> F64:
        return np.array([1 - self.params.alpha, self.params.alpha])

    def engine_keys(self, key: int) -> U32:
        return np.stack([_philox.key_words(_derived(key, domain)) for domain in (b"key_a", b"key_b")])

    def _log10_sum(self, n: int, total: float) -> float:
        return _two_gammas.log10_tail(n, self.params.alpha, total)


def _derived(key: int, domain: bytes) -> int:
    """vLLM's `derive_watermark_key`: the first 8 bytes, big-endian, of SHA-256(domain ‖ key as 8 big-endian bytes)."""
    return int.from_bytes(hashlib.sha256(domain + key.to_bytes(8, "big")).digest()[:8], "big")


@njit(cache=True, nogil=True)
def _read(ids_T: U32, begin: int, skip: int, width: int, history: int) -> tuple[U64, Any, U32, U32]:
    """Inputs, positions, windows and tokens of the positions ≥ skip whose context is new.

    The sequence starts at `begin`; before it stands _NO_TOKEN. A context is old if one of the `history` positions
    before had it too; history 0 keeps every position. Contexts and inputs are known by 64-bit hashes; two that collide
    (by chance 2^-64 a pair) count as one, which can only lose a position.
    """
    length = max(0, ids_T.shape[0] - begin)
    windows = np.empty((length, width), np.uint32)
    contexts = np.zeros(length, np.uint64)
    for j in range(width):
        factor = mix(uint64(width), j) | uint64(1)
        back = width - j
        for i in range(min(back, length)):
            windows[i, j] = _NO_TOKEN
            contexts[i] += factor * uint64(_NO_TOKEN)
        for i in range(back, length):
            windows[i, j] = ids_T[begin + i - back]
            contexts[i] += factor * uint64(ids_T[begin + i - back])
    keep = _new(contexts, history) if history > 0 else np.ones(length, np.bool_)
    inputs = np.empty(length, np.uint64)
    positions = np.empty(length, np.int64)
    tokens = np.empty(length, np.uint32)
    count = 0
    for i in range(max(0, skip - begin), length):
        if keep[i]:
            if count < i:
                windows[count] = windows[i]
            inputs[count] = mix(contexts[i], ids_T[begin + i])
            positions[count] = begin + i
            tokens[count] = ids_T[begin + i]
            count += 1
    return inputs[:count], positions[:count], windows[:count], tokens[:count]


@njit(cache=True, nogil=True)
def _new(contexts_N: U64, history: int) -> Any:
    """True (N,) where none of the `history` positions before has the same context."""
    count = contexts_N.shape[0]
    slots = 1
    while slots < 2 * count:
        slots *= 2
    wrap = uint64(slots - 1)
    last = np.full(slots, -1, np.int32)
    new = np.empty(count, np.bool_)
    for i in range(count):
        slot = mix(contexts_N[i], 0) & wrap
        while last[slot] >= 0 and contexts_N[last[slot]] != contexts_N[i]:
            slot = (slot + uint64(1)) & wrap
        new[i] = last[slot] < 0 or last[slot] < i - history
        last[slot] = i
    return new
