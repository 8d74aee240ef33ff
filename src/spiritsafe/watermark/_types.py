"""What a scheme is and what a detector is: the two protocols everything in this package meets at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from spiritsafe.watermark._prf import U32, U64

__all__ = ["F64", "Detector", "Law", "Reading", "Scheme", "Scores", "TailOfInputs"]

F64 = NDArray[np.float64]
Law = tuple[Literal["exponential", "bernoulli"], float | None]
"""Of one score under H0, where entropy weights have a tail for it; the number is the Bernoulli's probability."""


class Scheme(Protocol):
    """A way to mark, on Spiritsafe's own PRF. A scheme is one file in `schemes/`.

    Under H0 (the text does not depend on the key) the scores of distinct (context, token) pairs are independent with a
    known law, and `log10_tail` is the exact upper tail of their sum.
    """

    name: ClassVar[str]
    context_width: int
    law: Law | None

    def mark(self, hashes_B: U64, probs_BV: Any) -> Any:
        """The distributions to sample from instead of `probs_BV` (float32 torch, rows sum to 1); a hash a row."""

    def scores(self, hashes_N: U64, tokens_N: U32) -> F64:
        """Score of each token (N,) after contexts with these hashes."""

    def sums(self, hashes_N: U64, tokens_N: U32, ends_D: NDArray[np.int64]) -> F64:
        """Sums of `scores` over runs (D,): run d ends before ends_D[d] and begins where the one before ended."""

    def totals(self, keys_K2: U64, windows_Nk: U32, tokens_N: U32) -> F64:
        """Sum of the scores (K,) under each of K keys."""

    def log10_tail(self, n: int, total: float) -> float:
        """log10 P(sum of n scores ≥ total) under H0; 0.0 for n = 0."""

    def fewest(self, log10_level: float) -> int:
        """The fewest scored tokens whose best possible p-value reaches the level."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a document offers for scoring, before deduplication.

    inputs: (N,) identity of what the PRF hashes for a position, the scored token included. Equal inputs are equal
        coins: only the first of them counts.
    positions: (N,) indices of the scored tokens in the document.
    windows: (N, k) context tokens, and tokens: (N,) scored tokens; an adapter may keep what it needs instead.
    """

    inputs: U64
    positions: NDArray[np.int64]
    windows: U32
    tokens: U32

    def take(self, mask_N: NDArray[np.bool_]) -> Reading:
        return Reading(self.inputs[mask_N], self.positions[mask_N], self.windows[mask_N], self.tokens[mask_N])


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores (N,) of a reading under one key, and which of its positions that key speaks for (N,)."""

    values: F64
    counted: NDArray[np.bool_]


class Detector(Protocol):
    """A test of "these texts do not depend on this key": Spiritsafe's own marks or an engine's.

    trials: what is tried in one test, such as a key set's epochs; the best is corrected for all. One for an engine.
    keyed_reading: what the PRF hashes depends on the key, so that every decoy must read (and deduplicate) for itself.
    """

    scheme: str
    trials: Sequence[str | None]
    keyed_reading: bool

    def read(self, ids_T: U32, first: int) -> Reading:
        """The positions ≥ `first` that can be scored; ids before `first` are context only."""

    def scores(self, reading: Reading, trial: int) -> Scores:
        """Scores of a (deduplicated) reading under the key of one trial."""

    def decoys(self, seed: bytes, count: int) -> Sequence[Detector]:
        """Detectors that differ in their key only: a deterministic function of the public `seed`."""

    def decoy_totals(self, reading: Reading, trial: int, seed: bytes, count: int) -> tuple[int, F64]:
        """(n, sums (count,)) of a deduplicated reading under the keys of `decoys`, at once. Not if keyed_reading."""

    def log10_tail(self, n: int, total: float) -> float:
        """log10 P(sum of n scores ≥ total) under H0: exact or an upper bound; 0.0 for n = 0."""

    def fewest(self, log10_level: float) -> int:
        """The fewest scored tokens whose best possible p-value reaches the level."""


@runtime_checkable
class TailOfInputs(Protocol):
    """A detector whose null law depends on which inputs are scored, not only on how many.

    Where a detector has this, report it; its `log10_tail` then serves for scanning and planning only.
    """

    def log10_tail_of(self, inputs_N: U64, total: float) -> float:
        """log10 P(sum of the scores of these inputs ≥ total) under H0: exact or an upper bound; 0.0 for none."""
