"""What the ledger keeps in place of a prompt: enough to find who works through a list, too little to read.

Of the last user turn: 64-bit hashes of its first ten and last eight words with digits masked, and of the whole turn; a
64-permutation MinHash of its word pairs, one byte a permutation; its words thrown into 64 counters. Of the turn before
it and of the system prompt: a hash each. Yes/no marks of what is asked for, and sizes. No word can be read back from
any of it. Whoever knows the key can test a guessed text against a hash, so the guard hashes under a key of its own.

Work is bounded: of a long text only both ends are looked at.
"""

from __future__ import annotations

import operator
import re
from array import array
from base64 import b64encode
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from rensa import RMinHash

from spiritsafe.serve._elicitation import marks_of
from spiritsafe.wire import Ask

__all__ = ["Sketch", "sketch_of"]

_HEAD, _TAIL = 10, 8  # words of the skeleton
_END = 4096  # characters looked at, at either end of a text
_MOST_WORDS = 512  # of those, in the MinHash and the projection
_PERMUTATIONS, _DIMENSIONS = 64, 64
_SHIFT, _BITS = 57, 127  # of a 64-bit hash the highest seven: a counter of 64, and a sign
_HIGHEST = 127  # of a signed byte
_UNSPACED = 24  # characters a word on average, above which a text is written without spaces
_DIGITS = re.compile(r"\d+")


class Sketch(NamedTuple):
    """skeleton: hashes of the first and the last words, "<16 hex>-<16 hex>".  sketch: MinHash, base64 of 64 bytes.
    Both are empty where there is no text.  features: see `sketch_of`."""

    skeleton: str
    sketch: str
    features: dict[str, Any]


def sketch_of(ask: Ask, *, key: bytes = b"", keep_prompt: bool = False) -> Sketch:
    """Sketch a request. It does not raise, whatever the prompt.

    key: what everything is hashed under, up to 64 bytes; sketches under different keys cannot be compared.
    keep_prompt: also keep the texts, as features["prompt"], pairs of role and text.

    Features: `chars` and `words` of the last user turn; `exact`, `before`, `system`: hashes of that turn, of the user's
    turn before it and of the system prompt, None where there is none; `projection`: base64 of 64 signed bytes, the
    words hashed into signed counters; and the marks of `marks_of`.
    """
    turn, before, system = _turns(ask)
    looked_at = _ends(turn)
    low = looked_at.lower()
    words = _words(low)
    features: dict[str, Any] = {
        "chars": len(turn),
        "words": len(words),
        "exact": _hash(f"{len(turn)}:{looked_at}", key) if turn else None,
        "before": _hash(f"{len(before)}:{_ends(before)}", key) if before else None,
        "system": _hash(f"{len(system)}:{_ends(system)}", key) if system else None,
        **marks_of(ask, low, words),
    }
    if keep_prompt:
        features["prompt"] = [[role, text] for role, text in ask.said]
    if not words:
        return Sketch("", "", features)
    skeleton = f"{_masked(words[:_HEAD], key)}-{_masked(words[-_TAIL:], key)}"
    minhash, features["projection"] = _sketches(words[:_MOST_WORDS], key)
    return Sketch(skeleton, minhash, features)


def _turns(ask: Ask) -> tuple[str, str, str]:
    """The last user turn, the one before it, and the system prompt. Token ids stand for a turn without text."""
    turns: list[list[str]] = []
    system, previous = "", ""
    for role, text in ask.said:
        if role == "user":
            if previous != "user":
                turns.append([])
            turns[-1].append(text)
        elif not system and role in ("system", "developer"):
            system = text
        previous = role or previous
    if not turns and ask.ids is not None:
        # a letter before each: digits are masked
        return " ".join(f"i{_letters(token)}" for token in ask.ids[:_MOST_WORDS]), "", system
    last = "\n".join(turns[-1]) if turns else ""
    return last, "\n".join(turns[-2]) if len(turns) > 1 else "", system


def _letters(token: int) -> str:
    return str(token).translate(_AS_LETTERS)


_AS_LETTERS = str.maketrans("0123456789", "abcdefghij")


def _ends(text: str) -> str:
    if len(text) > 2 * _END:
        text = f"{text[:_END]}\n{text[-_END:]}"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()  # without lone surrogates


def _words(low: str) -> Sequence[str]:
    """Words; pairs of characters where a script does without spaces."""
    words = low.split()
    if not words or low.isascii() or len(low) <= _UNSPACED * len(words):
        return words
    run = "".join(words)
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]


def _masked(words: Sequence[str], key: bytes) -> str:
    return _hash(_DIGITS.sub("0", " ".join(words)), key)


def _hash(text: str, key: bytes) -> str:
    return blake2b(text.encode(), digest_size=8, key=key).hexdigest()


def _sketches(words: Sequence[str], key: bytes) -> tuple[str, str]:
    """MinHash of the word pairs, and projection of the words, each in base64. Plain Python: for so few numbers numpy's
    calls cost several times the work, the more so as nothing of them is in the processor's cache."""
    seed = _seed(key)
    hasher = RMinHash(_PERMUTATIONS, seed)
    hasher.update(list(map(operator.add, words, words[1:])) or words)
    minhash = array("I", hasher.digest()).tobytes()[:: array("I").itemsize]  # the low byte of each, on these machines
    # multiply-shift under the key's odd number: the highest bits choose the counter and the sign
    odd, counts = seed | 1, [0] * (2 * _DIMENSIONS)
    for hashed in RMinHash.hash_token_sets((words,))[0]:
        counts[(hashed * odd >> _SHIFT) & _BITS] += 1
    if len(words) > _HIGHEST:
        counts = [min(count, _HIGHEST) for count in counts]
    projection = array("b", map(operator.sub, counts, counts[_DIMENSIONS:]))  # ends with the shorter one
    return b64encode(minhash).decode(), b64encode(projection).decode()


@lru_cache(maxsize=8)
def _seed(key: bytes) -> int:
    return int.from_bytes(blake2b(b"spiritsafe sketch", digest_size=8, key=key).digest(), "little")
