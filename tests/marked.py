"""Key sets that touch no disk, and marked texts made by a language of a few hundred tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64

from spiritsafe.keys import Epoch, KeySet
from spiritsafe.keys._derive import Deriver
from spiritsafe.watermark._native import coin_threshold, marking_of
from spiritsafe.watermark._packing import coin_is_account
from spiritsafe.watermark._prf import U32, context_hash, key_words, mix, uniform

__all__ = ["key_set", "write"]

VOCAB, CHOICES = 400, 12


def key_set(seed: int, epochs: tuple[str, ...] = ("2026-11",), **marking: Any) -> KeySet:
    """A key set whose secret is the seed; its last epoch is active."""
    made = tuple(
        Epoch(name=name, created="2026-11-01T00:00:00Z", state="active" if name == epochs[-1] else "retired")
        for name in epochs
    )
    master = seed.to_bytes(32, "big")
    return KeySet(f"ks_{seed % 2**32:08x}", "default", marking, None, made, False, Deriver(master, "default"))


def write(keys: KeySet, epoch: str, slot: int | None, tokens: int, seed: int, *, vocab: int = VOCAB) -> U32:
    """Gumbel-marked ids (T,). slot None: positions of the account layer are drawn at random, as if unmarked.

    Every step has 12 tokens to choose from, which the two tokens before it decide, with geometric probabilities (2.7
    bits); a small vocabulary repeats itself as templates do.
    """
    scheme = marking_of(keys).scheme
    words = [
        key_words(key)[0]
        for key in (
            keys.coin_key(epoch, scheme),
            keys.epoch_key(epoch, scheme),
            keys.account_key(epoch, slot or 0, scheme),
        )
    ]
    below = coin_threshold(marking_of(keys).account_share)
    ids: U32 = _write(*words, below, slot is not None, tokens, seed, vocab)
    return ids


@njit(cache=True)
def _write(
    coin_2: Any, epoch_2: Any, account_2: Any, below: int, with_account: bool, tokens: int, seed: int, vocab: int
) -> Any:
    np.random.seed(seed)
    ids = np.empty(tokens, np.uint32)
    ids[0], ids[1] = np.random.randint(0, vocab), np.random.randint(0, vocab)
    for t in range(2, tokens):
        window = ids[t - 2 : t]
        language = context_hash(uint64(1), uint64(2), window)
        to_account = coin_is_account(context_hash(coin_2[0], coin_2[1], window), below)
        key = account_2 if to_account else epoch_2
        h = context_hash(key[0], key[1], window)
        best, chosen, p = np.inf, uint64(0), 0.25
        for c in range(CHOICES):
            x = mix(language, c) % uint64(vocab)
            u = uniform(mix(h, x)) if with_account or not to_account else np.random.random()
            arrival = -np.log(u) / p
            if arrival < best:
                best, chosen = arrival, x
            p *= 0.8
        ids[t] = chosen
    return ids
