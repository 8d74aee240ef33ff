"""What torch's CPU generator yields, without torch: MT19937 and `torch.randperm`, bit for bit.

`torch.Generator().manual_seed(s)` starts MT19937 (Matsumoto and Nishimura, 1998) from the low 32 bits of s.
`torch.randperm(n)` is a Fisher-Yates shuffle that at step i swaps position i with position i + random() mod (n − i), 32
bits a draw. What step i has put at position i stays there, so the first γn entries need γn draws, and whether one value
is among them is read by following that value through the swaps.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint32
from numpy.typing import NDArray

from spiritsafe.watermark._prf import U32

__all__ = ["I32", "among_first", "draws", "permutation_head", "swap_targets"]

I32 = NDArray[np.int32]

_N, _M = 624, 397
_MATRIX = np.uint32(0x9908B0DF)
_TEMPER1 = np.uint32(0x9D2C5680)
_TEMPER2 = np.uint32(0xEFC60000)
_CHUNK = 1024
# From this many values on, carrying out all swaps is cheaper than following each value through them.
_MANY = 4


@njit(inline="always")
def _twist(high: int, low: int) -> int:
    y = (high & uint32(0x80000000)) | (low & uint32(0x7FFFFFFF))
    twisted: int = (y >> uint32(1)) ^ ((uint32(0) - (low & uint32(1))) & _MATRIX)
    return twisted


@njit(cache=True)
def _start(seed: int, state: U32) -> None:
    x = uint32(seed)
    state[0] = x
    for i in range(1, _N):
        x = uint32(uint32(1812433253) * (x ^ (x >> uint32(30))) + uint32(i))
        state[i] = x


@njit(cache=True)
def _next_block(state: U32, out: U32) -> None:
    """Advance the state by 624 draws, tempered into `out`."""
    for k in range(_N - _M):
        state[k] = state[k + _M] ^ _twist(state[k], state[k + 1])
    for k in range(_N - _M, _N - 1):
        state[k] = state[k + _M - _N] ^ _twist(state[k], state[k + 1])
    state[_N - 1] = state[_M - 1] ^ _twist(state[_N - 1], state[0])
    for k in range(_N):
        y = state[k]
        y ^= y >> uint32(11)
        y ^= (y << uint32(7)) & _TEMPER1
        y ^= (y << uint32(15)) & _TEMPER2
        out[k] = y ^ (y >> uint32(18))


@njit(cache=True)
def draws(seed: int, count: int) -> U32:
    """The first `count` 32-bit draws of a generator seeded with the low 32 bits of `seed`."""
    state, block = np.empty(_N, np.uint32), np.empty(_N, np.uint32)
    out = np.empty(count, np.uint32)
    _start(seed, state)
    for first in range(0, count, _N):
        _next_block(state, block)
        last = min(first + _N, count)
        out[first:last] = block[: last - first]
    return out


@njit(cache=True)
def swap_targets(seed: int, n: int, state: U32, block: U32, out: I32) -> None:
    """out[i] = the position that step i of randperm(n) swaps with i, for as many steps as `out` holds (< n)."""
    _start(seed, state)
    steps = out.shape[0]
    for first in range(0, steps, _N):
        _next_block(state, block)
        for j in range(min(_N, steps - first)):
            # Exact: a quotient of 32-bit integers that is not whole is further from a whole number than a rounding.
            size = np.float64(n - first - j)
            draw = np.float64(block[j])
            out[first + j] = np.int32(draw - size * np.floor(draw / size)) + np.int32(first + j)


@njit(cache=True)
def _follow(targets: I32, value: int) -> bool:
    """Whether `value`, which starts at the position of that number, ends among the first."""
    steps, at, i = targets.shape[0], np.int32(value), 0
    while True:
        stop = min(steps, int(at))
        while i < stop:
            end = min(i + _CHUNK, stop)
            hits = np.int32(0)
            for j in range(i, end):
                hits += np.int32(targets[j] == at)
            if hits:
                return True
            i = end
        if at >= steps:
            return False
        if targets[at] == at:
            return True
        i = int(at) + 1
        at = targets[at]


@njit(cache=True)
def _carry_out(targets: I32, order: I32) -> None:
    """Shuffle `order` in place: afterwards its first entries are the permutation's."""
    for k in range(order.shape[0]):
        order[k] = k
    for i in range(targets.shape[0]):
        other = targets[i]
        order[i], order[other] = order[other], order[i]


@njit(cache=True)
def permutation_head(seed: int, n: int, count: int) -> I32:
    """torch.randperm(n)[:count] under this seed, for 1 ≤ count ≤ n."""
    state, block = np.empty(_N, np.uint32), np.empty(_N, np.uint32)
    targets, order = np.empty(min(count, n - 1), np.int32), np.empty(n, np.int32)
    swap_targets(seed, n, state, block, targets)
    _carry_out(targets, order)
    return order[:count].copy()


@njit(cache=True, nogil=True)
def among_first(seeds_N: U32, values_N: U32, n: int, count: int) -> NDArray[np.bool_]:
    """Whether each value is in randperm(n)[:count] under its seed (N,): fastest where equal seeds stand together.

    Values are < n, and 0 < count < n.
    """
    total = seeds_N.shape[0]
    out = np.empty(total, np.bool_)
    state, block = np.empty(_N, np.uint32), np.empty(_N, np.uint32)
    targets, order = np.empty(count, np.int32), np.empty(n, np.int32)
    first_of = np.zeros(n, np.bool_)
    start = 0
    while start < total:
        stop = start + 1
        while stop < total and seeds_N[stop] == seeds_N[start]:
            stop += 1
        swap_targets(seeds_N[start], n, state, block, targets)
        if stop - start < _MANY:
            for k in range(start, stop):
                out[k] = _follow(targets, values_N[k])
        else:
            _carry_out(targets, order)
            first_of[:] = False
            for k in range(count):
                first_of[order[k]] = True
            for k in range(start, stop):
                out[k] = first_of[values_N[k]]
        start = stop
    return out
