"""transformers' KGW watermark (`WatermarkingConfig`): read as its own processor emits it on a CPU.

H0: the text does not depend on `hashing_key`, which was drawn at random. Access: token ids and the operator's config.
Source: Kirchenbauer et al., "A Watermark for Large Language Models" (2023), Algorithms 2 and 3, as transformers'
`WatermarkLogitsProcessor` computes them, which is not what its n-grams suggest:

- left-hash seeds torch's generator with hashing_key · (the last token) mod 2^64 − 1, whatever `context_width` says;
- self-hash with min over the window of hashing_key · T(x_i) · T(x_t), in overflowing int64, the scored token included;
  T is a shuffle of 1 … 1,000,003 seeded with hashing_key. While generating, only the 40 likeliest tokens are tried;
- the generator keeps the low 32 bits of a seed, and the green list is the first int(γV) of `randperm(V)`.

So a coin is (32-bit seed, token), and that is what is deduplicated. A seed of 0, as left-hash has after token 0
under every key, says nothing about the key and is not scored.

**Why the binomial tail bounds.** Tokens after one seed are drawn without replacement, seeds are independent. Let
g = int(γV) and c_i = 1/(V − i) + 2^-32, a bound on the chance that draw i, 32 bits modulo V − i, meets a given value.
The green count of m tokens of one seed is stochastically below the chain that steps up from h with probability
(m − h) c_i. A step acts on the chain's generating polynomial as 1 + c_i(s − t)∂_t, which preserves stability while
m c_i ≤ 1 (Borcea and Brändén, Invent. Math. 177, 2009), that is for m up to (1 − γ)V. So all roots are real and the
chain is a sum of independent coins, of mean at most m(g/V + g/2^32); with c_i = 1/(V − i) it is the hypergeometric law
(Vatutin and Mikhailov, 1982). The total over seeds is such a sum too, and by Hoeffding (Ann. Math. Stat. 27, 1956,
theorem 4) its tail at k ≥ np + 1 is at most that of Bin(n, p). Below np + 1 Markov's np/k is reported, at most 1.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Literal

import numpy as np
from numba import njit, uint32
from numpy.typing import NDArray
from pydantic import Field, StrictInt

from spiritsafe.config import StrictModel, parse_config
from spiritsafe.errors import BadInput
from spiritsafe.keys import decoy_keys
from spiritsafe.pvalue import binomial
from spiritsafe.watermark._prf import U32, U64
from spiritsafe.watermark._types import F64, Reading, Scores
from spiritsafe.watermark.adapters._decoys import Decoys
from spiritsafe.watermark.adapters._mersenne import I32, among_first, permutation_head

__all__ = ["VERSIONS", "HfKgw", "HfKgwParams", "left_seeds", "self_seeds"]

VERSIONS = "transformers 5.23.0 with torch 2.13.0, on a CPU"

_TABLE = 1_000_003
_MODULUS = 2**64 - 1
_CACHE_BYTES = 256 << 20
_NEVER, _ONCE = np.int32(-1), np.int32(-2)  # instead of a list's slot: how often it was asked for
_OFTEN = 4  # tokens after one seed from which on a list is drawn at once


class HfKgwParams(StrictModel):
    """`WatermarkingConfig`'s fields and defaults, and `vocab_size`: the model config's, padding rows included."""

    vocab_size: StrictInt = Field(ge=2, lt=2**31)
    greenlist_ratio: float = Field(0.25, gt=0, lt=1)
    bias: float = 2.0
    hashing_key: StrictInt = Field(15485863, ge=-(2**63), lt=2**64)
    seeding_scheme: Literal["lefthash", "selfhash"] = "lefthash"
    context_width: StrictInt = Field(1, ge=1)


class HfKgw:
    """Detector of transformers' KGW watermark; a score is 1 for a green token, else 0."""

    scheme: ClassVar[str] = "hf-kgw"
    trials: Sequence[str | None] = (None,)

    def __init__(self, params: HfKgwParams, kept_bytes: int = _CACHE_BYTES) -> None:
        """kept_bytes: of green lists, at most, from one document to the next."""
        key, size = params.hashing_key, params.vocab_size
        self._params = params
        self._vocab, self._green = size, int(size * params.greenlist_ratio)
        self._selfhash = params.seeding_scheme == "selfhash"
        if self._green == 0:
            raise BadInput(f"hf-kgw: greenlist_ratio {params.greenlist_ratio} of {size} tokens leaves no green token")
        if key % _MODULUS == 0:
            raise BadInput(f"hf-kgw: hashing_key {key} seeds every list with 0; give the key that was used")
        if self._selfhash and key >= 2**63:
            raise BadInput("hf-kgw: hashing_key does not fit selfhash, where transformers multiplies in int64")
        # Then distinct previous tokens have distinct seeds, and a coin's identity needs no key.
        distinct = key % 2 == 1 and 0 < key < _MODULUS // size
        self.keyed_reading = self._selfhash or not distinct
        self._context = params.context_width - 1 if self._selfhash else 1
        self._chance = self._green / size + self._green / 2**32
        self._table: I32 | None = None
        self._lists = _GreenLists(size, self._green, kept_bytes)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> HfKgw:
        """The detector for these settings.

        Raises:
            BadInput: a field is unknown, missing or does not fit, or the settings can carry no mark.
        """
        return cls(parse_config(params, HfKgwParams, "hf-kgw params"))

    def read(self, ids_T: U32, first: int) -> Reading:
        """Positions ≥ `first` with a context. Inputs: seed · 2^32 + token; previous token for seed if as good.

        Raises:
            BadInput: an id outside the vocabulary.
        """
        ids = np.ascontiguousarray(ids_T, np.uint32)
        if len(ids) and ids.max() >= self._vocab:
            at = int(np.argmax(ids >= self._vocab))
            raise BadInput(
                f"hf-kgw: token id {ids[at]} at position {at} is outside the vocabulary of {self._vocab}; vocab_size is"
                " the model config's, and the ids are its own tokenizer's"
            )
        start = max(first, self._context)
        if start >= len(ids):
            none = np.empty((0, self._context), np.uint32)
            return Reading(np.empty(0, np.uint64), np.empty(0, np.int64), none, ids[:0])
        windows = np.lib.stride_tricks.sliding_window_view(ids, self._context + 1)[start - self._context :]
        contexts, tokens = windows[:, :-1], ids[start:]
        seeds = self._seeds(windows)
        who = seeds if self.keyed_reading else contexts[:, 0]
        inputs = (who.astype(np.uint64) << np.uint64(32)) | tokens
        return Reading(inputs, np.arange(start, len(ids)), contexts, tokens).take(seeds != 0)

    def scores(self, reading: Reading, trial: int) -> Scores:
        """1.0 where the token is green. Trial 0 is the only one."""
        if self._selfhash:
            green = _among(reading.inputs >> np.uint64(32), reading.tokens, self._vocab, self._green)
        else:
            seeds = left_seeds(self._params.hashing_key, reading.windows[:, 0])
            green = self._lists.green(seeds, reading.windows[:, 0], reading.tokens)
        return Scores(green.astype(np.float64), np.ones(len(green), np.bool_))

    def decoys(self, seed: bytes, count: int) -> Sequence[HfKgw]:
        """The same settings under `count` odd 32-bit keys, HKDF of the seed; each is built when asked for."""
        keys = _decoy_keys(seed, count)

        def decoy(index: int) -> HfKgw:
            return HfKgw(self._params.model_copy(update={"hashing_key": keys[index]}), kept_bytes=0)

        return Decoys(decoy, count)

    def decoy_totals(self, reading: Reading, trial: int, seed: bytes, count: int) -> tuple[int, F64]:
        """Green counts under the decoys' keys, about 20 µs a decoy and distinct previous token for V = 49,152.

        Raises:
            ValueError: the reading depends on the key.
        """
        if self.keyed_reading:
            raise ValueError("what is hashed depends on the key: let each decoy read for itself")
        before, tokens = reading.windows[:, 0], reading.tokens
        order = np.argsort(before, kind="stable")
        before, tokens = before[order], tokens[order]

        def total(key: int) -> float:
            return float(among_first(left_seeds(key, before), tokens, self._vocab, self._green).sum())

        with ThreadPoolExecutor() as pool:
            return len(tokens), np.array(list(pool.map(total, _decoy_keys(seed, count))), np.float64)

    def log10_tail(self, n: int, total: float) -> float:
        """Upper bound on log10 P(green ≥ total) of n distinct coins (see the head of the file)."""
        mean = n * self._chance
        if n == 0 or total <= mean:
            return 0.0
        if total < mean + 1:
            return math.log10(mean / total)
        return float(binomial(n, self._chance, total))

    def fewest(self, log10_level: float) -> int:
        """The fewest coins that reach the level if all are green."""
        n = max(1, math.ceil(log10_level / math.log10(self._chance)))
        while self.log10_tail(n, n) > log10_level:
            n += 1
        return n

    def _seeds(self, windows_Nk: U32) -> U32:
        """The generator's 32-bit seeds (N,) of windows whose last token is the scored one."""
        if not self._selfhash:
            return left_seeds(self._params.hashing_key, windows_Nk[:, 0])
        if self._table is None:
            key = np.uint32(self._params.hashing_key % 2**32)
            self._table = permutation_head(key, _TABLE, min(self._vocab, _TABLE)) + np.int32(1)
        seeds: U32 = self_seeds(np.int64(self._params.hashing_key), self._table, np.ascontiguousarray(windows_Nk))
        return seeds


def left_seeds(key: int, tokens_N: U32) -> U32:
    """Low 32 bits (N,) of key · token mod 2^64 − 1, for any integer key."""
    key %= _MODULUS
    tokens = tokens_N.astype(np.uint64)
    half = np.uint64(32)
    high, low = tokens * np.uint64(key >> 32), tokens * np.uint64(key & 0xFFFFFFFF)
    below = (high << half) + low
    above = (high >> half) + (below < low)
    # 2^64 is 1 modulo 2^64 − 1: the words of the product add up, with an end-around carry.
    folded = below + above
    folded += folded < above
    folded[folded == np.uint64(_MODULUS)] = 0
    seeds: U32 = (folded & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return seeds


@njit(cache=True)
def self_seeds(key: int, table: I32, windows_Nk: U32) -> U32:
    """Low 32 bits (N,) of the self-hash seeds mod 2^64 − 1, of windows whose last token is the scored one.

    key: int64. table: T for the ids below 1,000,003 in use.
    """
    out = np.empty(windows_Nk.shape[0], np.uint32)
    size = uint32(_TABLE)
    for n in range(windows_Nk.shape[0]):
        last = np.int64(table[windows_Nk[n, -1] % size])
        lowest = np.int64(0)
        for j in range(windows_Nk.shape[1]):
            seed = key * np.int64(table[windows_Nk[n, j] % size]) * last
            if j == 0 or seed < lowest:
                lowest = seed
        # A negative seed modulo 2^64 − 1 is one less than its two's complement.
        out[n] = uint32((lowest - np.int64(lowest < 0)) & np.int64(0xFFFFFFFF))
    return out


def _among(seeds_N: U64 | U32, tokens_N: U32, vocab: int, green: int) -> NDArray[np.bool_]:
    order = np.argsort(seeds_N, kind="stable")
    out = np.empty(len(order), np.bool_)
    out[order] = among_first(seeds_N[order].astype(np.uint32), tokens_N[order], vocab, green)
    return out


def _decoy_keys(seed: bytes, count: int) -> list[int]:
    words = np.frombuffer(decoy_keys(seed, "hf-kgw", count), "<u4")[::4]
    return [int(word) | 1 for word in words]


class _GreenLists:
    """Left-hash lists as bit sets by previous token: drawn when asked for a second time, kept while there is room."""

    def __init__(self, vocab: int, green: int, kept_bytes: int) -> None:
        self._vocab, self._green = vocab, green
        self._most = kept_bytes // (vocab // 8 + 1)
        self._slots = np.empty(0, np.int32)
        self._bits = np.empty((0, vocab // 8 + 1), np.uint8)
        self._used = 0
        self._lock = threading.Lock()

    def green(self, seeds_N: U32, before_N: U32, tokens_N: U32) -> NDArray[np.bool_]:
        with self._lock:
            slots = self._slots_of(seeds_N, before_N)
            bits = self._bits
        known = slots >= 0
        out = np.empty(len(slots), np.bool_)
        out[known] = _look_up(bits, slots[known], tokens_N[known])
        out[~known] = _among(seeds_N[~known], tokens_N[~known], self._vocab, self._green)
        return out

    def _slots_of(self, seeds_N: U32, before_N: U32) -> NDArray[np.int32]:
        """Where each list is (N,), negative if it is not kept."""
        if not len(self._slots):
            self._slots = np.full(self._vocab, _NEVER, np.int32)
        missing = np.flatnonzero(self._slots[before_N] < 0)
        if len(missing) and self._used < self._most:
            asked, at, counts = np.unique(before_N[missing], return_index=True, return_counts=True)
            again = (counts >= _OFTEN) | (self._slots[asked] == _ONCE)
            self._slots[asked[~again]] = _ONCE
            self._draw(asked[again], seeds_N[missing[at[again]]])
        slots: NDArray[np.int32] = self._slots[before_N]
        return slots

    def _draw(self, before_M: U32, seeds_M: U32) -> None:
        before_M = before_M[: self._most - self._used]
        last = self._used + len(before_M)
        if last > len(self._bits):
            grown = np.zeros((min(max(last, 2 * len(self._bits)), self._most), self._bits.shape[1]), np.uint8)
            grown[: self._used] = self._bits[: self._used]
            self._bits = grown
        for slot, seed in zip(range(self._used, last), seeds_M, strict=False):
            _set_bits(self._bits[slot], permutation_head(seed, self._vocab, self._green))
        self._slots[before_M] = np.arange(self._used, last, dtype=np.int32)
        self._used = last


@njit(cache=True)
def _set_bits(bits: NDArray[np.uint8], tokens_N: I32) -> None:
    for token in tokens_N:
        bits[token >> 3] |= np.uint8(1 << (token & 7))


@njit(cache=True)
def _look_up(bits: NDArray[np.uint8], slots_N: NDArray[np.int32], tokens_N: U32) -> NDArray[np.bool_]:
    out = np.empty(slots_N.shape[0], np.bool_)
    for n in range(slots_N.shape[0]):
        token = tokens_N[n]
        out[n] = (bits[slots_N[n], token >> uint32(3)] >> (token & uint32(7))) & 1
    return out
