"""transformers' SynthID-Text watermark (`SynthIDTextWatermarkingConfig`), read as its own processor emits it on a CPU.

H0: the text does not depend on `keys`, which were drawn at random, one a layer. Access: token ids and the config.
Source: Dathathri et al., "Scalable watermarking for identifying large language model outputs", Nature 634 (2024), with
transformers' own hash: h ← (h + x)·6364136223846793005 + 1 in int64 over the n-gram from h = 1, once more with each
layer's key, and g = table[h mod N], a table of N coins from `torch.randint`. In 2025 google-deepmind/synthid-text
dropped the table and hashes otherwise: two SynthIDs that do not read each other.

For N a power of two only h mod N matters, and the last step moves it by a key: g_l = T[(h + key_l) mod N], T the table
in another order. So there are N coins in all, what is hashed (h mod N) does not depend on the keys, and the fixed
table, not ½, says how often a coin is 1.

**The exact null law.** For scored inputs A, layer l adds c(key_l) with c(k) = Σ_{h in A} T[h + k]. A fresh key makes k
uniform, layers are independent: the total has the law of m independent draws from the N numbers c(k), which one Fourier
transform yields. Its tail is their m-fold convolution, tilted so that the total is typical (no cancellation). Bin(nm,
mean of T) has the same mean but not the same variance: for structured texts it is off either way, and it ignores that A
exhausts the table. It serves `log10_tail(n, total)`, for scanning and planning; report `log10_tail_of`.

While generating, the processor does not see the prompt: the first contexts are the reply's own tokens after zeros. It
leaves a context unmarked that it met within the last `context_history_size` steps; those positions are not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import Field, StrictInt, field_validator
from scipy.optimize import brentq

from spiritsafe.config import StrictModel, parse_config
from spiritsafe.errors import BadInput
from spiritsafe.keys import decoy_keys
from spiritsafe.pvalue import binomial
from spiritsafe.watermark._prf import U32, U64, key_words, values
from spiritsafe.watermark._types import F64, Reading, Scores
from spiritsafe.watermark.adapters._decoys import Decoys
from spiritsafe.watermark.adapters._mersenne import draws

__all__ = ["VERSIONS", "HfSynthId", "HfSynthIdParams"]

VERSIONS = "transformers 5.23.0 with torch 2.13.0, on a CPU"

_MULTIPLIER = np.uint64(6364136223846793005)
_ONE = np.uint64(1)
_OTHER = {"temperature", "top_k", "apply_top_k", "num_leaves"}
Key = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]


class HfSynthIdParams(StrictModel):
    """`SynthIDTextWatermarkingConfig`'s fields and defaults.

    eos_token_id: the tokenizer's; from where it first stands in the reply nothing is scored, as transformers does.
    """

    ngram_len: StrictInt = Field(ge=2)
    keys: list[Key] = Field(min_length=1)
    context_history_size: StrictInt = Field(1024, ge=0)
    sampling_table_seed: StrictInt = Field(0, ge=-(2**63), lt=2**64)
    sampling_table_size: StrictInt = Field(2**16, ge=2, le=2**24)
    skip_first_ngram_calls: bool = False
    debug_mode: bool = False
    eos_token_id: StrictInt | None = Field(None, ge=0, lt=2**32)

    @field_validator("sampling_table_size")
    @classmethod
    def _power_of_two(cls, size: int) -> int:
        if size & (size - 1):
            raise ValueError("only powers of two have an exact null law")
        return size


class HfSynthId:
    """Detector of transformers' SynthID watermark; a score is the number of layers whose coin is 1."""

    scheme: ClassVar[str] = "hf-synthid"
    trials: Sequence[str | None] = (None,)
    keyed_reading = False

    def __init__(self, params: HfSynthIdParams, table: NDArray[np.uint8] | None = None) -> None:
        """table: T of this seed and size where it is known already."""
        size = params.sampling_table_size
        self._params = params
        self._table_N = _coins(params.sampling_table_seed % 2**32, size) if table is None else table
        self._mean = float(self._table_N.mean())
        if not 0 < self._mean < 1:
            raise BadInput("hf-synthid: every coin of this sampling table is the same; it carries no mark")
        self._scores_N = np.zeros(size, np.uint32)
        for key in params.keys:
            self._scores_N += np.roll(self._table_N, -(key % size))

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> HfSynthId:
        """The detector for these settings.

        Raises:
            BadInput: a field is unknown, missing or does not fit, or belongs to DeepMind's own SynthID.
        """
        if other := sorted(_OTHER & set(params)):
            raise BadInput(
                f"hf-synthid params: {', '.join(other)} belongs to google-deepmind/synthid-text, whose text hashes"
                " differently and cannot be read here; give transformers' SynthIDTextWatermarkingConfig"
            )
        return cls(parse_config(params, HfSynthIdParams, "hf-synthid params"))

    def read(self, ids_T: U32, first: int) -> Reading:
        """Positions ≥ `first` whose context is new in the reply. Inputs: the n-gram's hash mod the table's size.

        With first > 0 the reply's start is known and its first n-grams begin with zeros, as the processor hashes them
        (unless `skip_first_ngram_calls`). With first = 0 reading starts at the first whole n-gram.
        """
        k = self._params.ngram_len - 1
        reply = np.asarray(ids_T[first:], np.uint32)
        if self._params.eos_token_id is not None:
            reply = reply[: int(np.argmax(np.append(reply, self._params.eos_token_id) == self._params.eos_token_id))]
        start = first + k
        if first > 0 and not self._params.skip_first_ngram_calls:
            reply, start = np.concatenate([np.zeros(k, np.uint32), reply]), first
        count = max(0, len(reply) - k)
        contexts, hashes = _hashes(reply, k, count)
        mask = ~_repeated(contexts, self._params.context_history_size)
        windows = np.lib.stride_tricks.sliding_window_view(reply, k)[:count] if count else np.empty((0, k), np.uint32)
        inputs = hashes & np.uint64(self._params.sampling_table_size - 1)
        return Reading(inputs, start + np.arange(count), windows, reply[k : k + count]).take(mask)

    def scores(self, reading: Reading, trial: int) -> Scores:
        """How many of the m layers say 1. Trial 0 is the only one."""
        return Scores(self._scores_N[reading.inputs].astype(np.float64), np.ones(len(reading.inputs), np.bool_))

    def decoys(self, seed: bytes, count: int) -> Sequence[HfSynthId]:
        """The same table under `count` sets of uniform keys, HKDF of the seed; each is built when asked for."""
        keys = self._decoy_keys(seed, count)

        def decoy(index: int) -> HfSynthId:
            return HfSynthId(self._params.model_copy(update={"keys": keys[index].tolist()}), self._table_N)

        return Decoys(decoy, count)

    def decoy_totals(self, reading: Reading, trial: int, seed: bytes, count: int) -> tuple[int, F64]:
        """Totals under the decoys' keys, at one lookup a layer."""
        sums = self._sums(reading.inputs)[self._decoy_keys(seed, count)].sum(1)
        return len(reading.inputs), sums.astype(np.float64)

    def log10_tail(self, n: int, total: float) -> float:
        """log10 P(Bin(nm, mean of the table) ≥ total): about right where hashes fall like dice, no bound."""
        return float(binomial(n * len(self._params.keys), self._mean, total)) if n else 0.0

    def log10_tail_of(self, inputs_N: U64, total: float) -> float:
        """log10 P(total of these inputs ≥ total) over uniform keys: exact. About 2 ms for 65,536 coins."""
        if not len(inputs_N):
            return 0.0
        return _tail(self._sums(inputs_N), len(self._params.keys), total)

    def fewest(self, log10_level: float) -> int:
        """The fewest positions that reach the level if every coin is 1."""
        return max(1, math.ceil(log10_level / (len(self._params.keys) * math.log10(self._mean))))

    def _sums(self, inputs_N: U64) -> NDArray[np.int64]:
        """c (N,): what a layer adds for these inputs under each shift, key mod N."""
        size = len(self._table_N)
        where = np.bincount(inputs_N.astype(np.int64), minlength=size)
        spectrum = np.conj(np.fft.rfft(where)) * np.fft.rfft(self._table_N)
        return np.rint(np.fft.irfft(spectrum, size)).astype(np.int64)

    def _decoy_keys(self, seed: bytes, count: int) -> NDArray[np.int64]:
        """Keys mod N (count, m)."""
        m = len(self._params.keys)
        layers, zeros = np.arange(m, dtype=np.uint32)[:, None], np.zeros(m, np.uint32)
        words = key_words(decoy_keys(seed, "hf-synthid", count))
        rows = [values(key, layers, zeros) for key in words]
        return (np.array(rows, np.uint64).reshape(count, m) & np.uint64(len(self._table_N) - 1)).astype(np.int64)


def _coins(seed: int, size: int) -> NDArray[np.uint8]:
    """T (N,): the coin of a hash plus key before its last step, so that only their sum matters."""
    table = (draws(np.uint32(seed), size) & np.uint32(1)).astype(np.uint8)
    steps = np.arange(size, dtype=np.uint64) * _MULTIPLIER + _ONE
    coins: NDArray[np.uint8] = table[steps & np.uint64(size - 1)]
    return coins


@njit(cache=True)
def _hashes(ids_T: U32, k: int, count: int) -> tuple[U64, U64]:
    """Hashes (count,) of each context of k tokens and of it with the token after it."""
    contexts, ngrams = np.empty(count, np.uint64), np.empty(count, np.uint64)
    for n in range(count):
        h = _ONE
        for j in range(k):
            h = (h + np.uint64(ids_T[n + j])) * _MULTIPLIER + _ONE
        contexts[n] = h
        ngrams[n] = (h + np.uint64(ids_T[n + k])) * _MULTIPLIER + _ONE
    return contexts, ngrams


def _repeated(contexts_N: U64, history: int) -> NDArray[np.bool_]:
    """Whether a context was among the `history` before it. The history starts as that many hashes of 0."""
    count = len(contexts_N)
    out: NDArray[np.bool_] = (contexts_N == 0) & (np.arange(count) < history)
    order = np.argsort(contexts_N, kind="stable")
    same = contexts_N[order[1:]] == contexts_N[order[:-1]]
    out[order[1:][same & (np.diff(order) <= history)]] = True
    return out


def _tail(sums_N: NDArray[np.int64], m: int, total: float) -> float:
    """log10 P(sum of m independent draws from `sums_N` ≥ total), for a total they can reach."""
    lowest = int(sums_N.min())
    counts = np.bincount(sums_N - lowest)
    width = len(counts)
    steps = np.arange(width)
    ln_pmf = np.log(np.maximum(counts, 0.5) / len(sums_N))
    ln_pmf[counts == 0] = -np.inf
    target = math.ceil(total) - m * lowest
    if target <= 0:
        return 0.0
    if target >= m * (width - 1):
        return m * float(ln_pmf[-1]) / math.log(10)
    tilt = _tilt(ln_pmf, steps, target / m)
    tilted = ln_pmf + tilt * steps
    ln_norm = float(np.logaddexp.reduce(tilted))
    size = 1 << (m * (width - 1)).bit_length()
    law = np.fft.irfft(np.fft.rfft(np.exp(tilted - ln_norm), size) ** m, size)[target : m * (width - 1) + 1]
    mass = float((np.maximum(law, 0.0) * np.exp(-tilt * np.arange(len(law)))).sum())
    return min(0.0, (math.log(mass) + m * ln_norm - tilt * target) / math.log(10))


def _tilt(ln_pmf: F64, steps: NDArray[np.int64], mean: float) -> float:
    """The exponential tilt ≥ 0 that moves the law's mean to `mean`, which is below its largest value."""

    def excess(tilt: float) -> float:
        weights = np.exp(ln_pmf + tilt * steps - (ln_pmf + tilt * steps).max())
        return float((weights * steps).sum() / weights.sum()) - mean

    if excess(0.0) >= 0:
        return 0.0
    high = 1.0
    while excess(high) < 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-9))
