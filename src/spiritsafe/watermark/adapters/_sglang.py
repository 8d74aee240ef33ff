"""SGLang's Gumbel-max marks, single-key and dual-key, as SGLang 0.5.23 writes them.

H0: the text does not depend on the engine's key (for two keys: on neither, or on the one whose partition is tested).
What is hashed: MurmurHash3 x86-32 of the last `context_window` tokens, prompt included, without a key; then of the
key's low and high word, that 32-bit context hash and the token. With two keys, Murmur of both keys and the context hash
is a coin that anyone with both keys can repeat, so every position is scored under the key that was speaking, and the
tail is a Gamma's as with one.

A reply is marked at most once a context hash and on at most 4,096 of them, so only a context's first occurrence is
read. The score is −ln(1 − u) with u rounded down to its 2^-32 step where the engine takes the step's middle: a unit
exponential is never below it, so the Gamma tail is an upper bound. A score differs by less than 2^-32 / (1 − u).

What it cannot show: the key enters as 32 bits of state (`KEY_STATE_BITS`), so a text marked under some other key is
also marked under this one with probability 2^-32, whatever the tail says.

Sources: SGLang 0.5.23, srt/sampling/watermarking/{core,detector,config}.py and
kernels/ops/sampling/textseal_selector.py; Appleby, MurmurHash3; Aaronson, "Watermarking of large language models"
(2022).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import log, log1p, log10
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import special

from spiritsafe import pvalue
from spiritsafe.config import StrictModel, parse_config
from spiritsafe.errors import BadInput
from spiritsafe.keys import KEY_BYTES, decoy_keys
from spiritsafe.watermark._prf import U32
from spiritsafe.watermark._types import F64, Reading, Scores
from spiritsafe.watermark.adapters import _murmur

__all__ = ["KEY_STATE_BITS", "VERSIONS", "SglangDual", "SglangGumbel", "SglangParams"]

VERSIONS = "SGLang 0.5.23"

KEY_STATE_BITS = 32
_HIGHEST = 32 * log(2)
_MAX_CONTEXTS = 4096  # the engine's MAX_WATERMARKED_CONTEXTS_PER_REQUEST
_HEX = frozenset("0123456789abcdefABCDEF")


def _integer(key: Any, where: str) -> int:
    """A key as the engine's `parse_watermark_key` reads it. What is wrong with one is told without showing it."""
    if not isinstance(key, str):
        raise BadInput(f"{where} must be a string of hex digits, as in SGLang's own config")
    digits = key[2:] if key[:2].lower() == "0x" else key
    if not 1 <= len(digits) <= 16 or not _HEX.issuperset(digits):
        raise BadInput(f"{where} must have 1 to 16 hex digits, optionally after 0x")
    return int(digits, 16)


class SglangParams(StrictModel):
    """The fields of SGLang's watermark config and of its `WatermarkDetector`; `statistic` and `vocab_size` are ours.

    max_contexts: read this many distinct contexts a document at most, each once, as the engine marks; null reads every
        distinct (context, token) pair.
    statistic: which of the engine detector's statistics is the test. `key_a_partition` is the one to trace with, where
        key A is an account's and key B is everybody's: in `combined`, key B's marks count for every account.
    max_probability, default_enabled, enforce_all: accepted so that a server's file can be given as it is. They decide
        what is marked, which detection does not need to know.
    """

    key: int = Field(repr=False)  # the engine's hex strings, as integers
    key_b: int | None = Field(default=None, repr=False)
    context_window: int = Field(default=4, strict=True, ge=1, le=64)
    mixing_probability: float = Field(default=0.5, gt=0, lt=1)
    max_probability: float = Field(default=1.0, gt=0, le=1)
    default_enabled: bool = Field(default=False, strict=True)
    enforce_all: bool = Field(default=False, strict=True)
    max_contexts: int | None = Field(default=_MAX_CONTEXTS, strict=True, ge=1, le=_MAX_CONTEXTS)
    statistic: Literal["combined", "key_a_partition", "key_b_partition"] = "combined"
    vocab_size: int | None = Field(default=None, strict=True, ge=2, le=2**31)


class _Sglang(ABC):
    """What both share: reading, scores under the key that speaks, decoys."""

    scheme: ClassVar[str]
    trials: Sequence[str | None] = (None,)
    keyed_reading = False

    def __init__(self, params: SglangParams, states_M: U32) -> None:
        self.params = params
        self._states_M = states_M

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """A detector from the engine's own field names and values.

        Raises:
            BadInput: a field SGLang 0.5.23 does not have or a value it does not accept, or parameters of the other
                scheme.
        """
        where = f"{cls.scheme} parameters (fields of {VERSIONS}, the version checked against)"
        keys = {n: _integer(params[n], f"{where}: {n}") for n in ("key", "key_b") if params.get(n) is not None}
        parsed = parse_config({**params, **keys}, SglangParams, where)
        cls._check(parsed, where)
        return cls(parsed, _murmur.key_states(np.array([keys[name] for name in sorted(keys)], np.uint64)))

    @classmethod
    @abstractmethod
    def _check(cls, params: SglangParams, where: str) -> None:
        """Raise BadInput for parameters of the other scheme."""

    @abstractmethod
    def _speakers(self, hashes_N: U32) -> NDArray[np.uint8]:
        """Which key (N,) speaks after these contexts."""

    @property
    def _coin(self) -> tuple[np.uint32, int]:
        """The coins' state, and below what a coin gives its context to key A; −1 for no coin."""
        return np.uint32(0), -1

    @property
    def _tested(self) -> int | None:
        """The only key whose positions count; None for all."""
        return None

    def read(self, ids_T: U32, first: int) -> Reading:
        """The positions the engine may have marked, with the context's 32-bit hash for a window.

        Without a prompt (`first` 0) the first `context_window` positions have unknown contexts and are left out. After
        a prompt shorter than that, contexts are short, as the engine hashes them.

        Raises:
            BadInput: an id that no token of the engine's vocabulary has.
        """
        ids = self._ids(ids_T)
        start = first or self.params.context_window
        return Reading(*_murmur.read(ids, start, self.params.context_window, self.params.max_contexts or 0))

    def scores(self, reading: Reading, trial: int) -> Scores:
        speakers = self._speakers(reading.windows[:, 0])
        values: F64 = _murmur.scores(self._states_M, speakers, reading.windows[:, 0], reading.tokens)
        counted = self._counted(speakers)
        values[~counted] = 0.0
        return Scores(values, counted)

    def totals_batch(
        self, ids_T: U32, offsets_D1: NDArray[np.int64], trial: int, firsts_D: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], F64]:
        """(n scored (D,), total (D,)) of many documents, each read and deduplicated for itself, in one pass.

        ids_T: the documents' ids one after another; document d is ids_T[offsets_D1[d] : offsets_D1[d + 1]].
        firsts_D: the first position of each document that may be scored; 0 by default.

        Raises:
            BadInput: an id that no token of the engine's vocabulary has.
        """
        ids, offsets = self._ids(ids_T), np.asarray(offsets_D1, np.int64)
        firsts = np.zeros(len(offsets) - 1, np.int64) if firsts_D is None else np.asarray(firsts_D, np.int64)
        width, most = self.params.context_window, self.params.max_contexts or 0
        tested = -1 if self._tested is None else self._tested
        n_D, total_D = _murmur.document_totals(ids, offsets, firsts, width, most, self._states_M, *self._coin, tested)
        return n_D, total_D

    def decoys(self, seed: bytes, count: int) -> list[Self]:
        """Decoys for the keys that score. The coins stay the true keys': valid given who speaks where."""
        return [type(self)(self.params, states_M) for states_M in self._decoy_states(seed, count)]

    def decoy_totals(self, reading: Reading, trial: int, seed: bytes, count: int) -> tuple[int, F64]:
        speakers = self._speakers(reading.windows[:, 0])
        counted = self._counted(speakers)
        ours = reading.take(counted)
        states_KM = self._decoy_states(seed, count)
        return len(ours.tokens), _murmur.totals(states_KM, speakers[counted], ours.windows[:, 0], ours.tokens)

    def log10_tail(self, n: int, total: float) -> float:
        if n == 0:
            return 0.0
        # What pvalue.gamma does for one sum that is not extreme, at a tenth of its cost.
        p = float(special.gammaincc(n, total))
        if p > 0.5:
            return log1p(-float(special.gammainc(n, total))) / log(10) + 0.0
        return log10(p) if p > 1e-250 else pvalue.gamma(n, total)

    def fewest(self, log10_level: float) -> int:
        most = 1
        while pvalue.gamma(most, most * _HIGHEST) > log10_level:
            most *= 2
        low = most // 2
        while most - low > 1:
            middle = (low + most) // 2
            enough = pvalue.gamma(middle, middle * _HIGHEST) <= log10_level
            low, most = (low, middle) if enough else (middle, most)
        return most

    def _ids(self, ids_T: U32) -> U32:
        size = self.params.vocab_size or 2**31
        ids = np.ascontiguousarray(ids_T, np.uint32)
        if len(ids) and int(ids.max()) >= size:
            at = int(np.argmax(ids >= size))
            raise BadInput(f"token id {ids[at]} at position {at} is outside the vocabulary of {size}; wrong tokenizer?")
        return ids

    def _counted(self, speakers_N: NDArray[np.uint8]) -> NDArray[np.bool_]:
        if self._tested is None:
            return np.ones(len(speakers_N), np.bool_)
        return np.asarray(speakers_N == self._tested)

    def _decoy_states(self, seed: bytes, count: int) -> U32:
        """(count, keys): key A from the first 8 bytes of a decoy, key B from the last 8."""
        keys_K2 = np.frombuffer(decoy_keys(seed, self.scheme, count), "<u8").reshape(-1, KEY_BYTES // 8)
        states_K2: U32 = _murmur.key_states(keys_K2.astype(np.uint64).ravel()).reshape(keys_K2.shape)
        return states_K2[:, : len(self._states_M)]


class SglangGumbel(_Sglang):
    """One key. Σ −ln(1 − u) of n tokens is at most Gamma(n, 1) under H0."""

    scheme = "sglang-gumbel"

    @classmethod
    def _check(cls, params: SglangParams, where: str) -> None:
        if params.key_b is not None:
            raise BadInput(f"{where}: there is a key_b; use the engine {SglangDual.scheme}")
        for name in ("mixing_probability", "statistic"):
            if getattr(params, name) != SglangParams.model_fields[name].default:
                raise BadInput(f"{where}: {name} needs a key_b, and the engine {SglangDual.scheme}")

    def _speakers(self, hashes_N: U32) -> NDArray[np.uint8]:
        return np.zeros(len(hashes_N), np.uint8)


class SglangDual(_Sglang):
    """Keys A and B; a coin of both and the context says which of them speaks. The tail is that of one key."""

    scheme = "sglang-dual"

    @classmethod
    def _check(cls, params: SglangParams, where: str) -> None:
        if params.key_b is None:
            raise BadInput(f"{where}: key_b is missing; with one key use the engine {SglangGumbel.scheme}")

    @property
    def _tested(self) -> int | None:
        return {"combined": None, "key_a_partition": 0, "key_b_partition": 1}[self.params.statistic]

    def _speakers(self, hashes_N: U32) -> NDArray[np.uint8]:
        state, below = self._coin
        return np.asarray(_murmur.coins(state, hashes_N) >= below, np.uint8)

    @property
    def _coin(self) -> tuple[np.uint32, int]:
        assert self.params.key_b is not None  # _check
        keys = np.uint64(self.params.key), np.uint64(self.params.key_b)
        return np.uint32(_murmur.coin_state(*keys)), int(self.params.mixing_probability * 2**32)
