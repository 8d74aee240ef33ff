"""Fresh keys, a small language to generate from, and real repetitive text: what the tests of our own marks share."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spiritsafe.keys import KeyId, KeySet, new_keys
from spiritsafe.watermark._marker import Marker, _Layers, choose_marked
from spiritsafe.watermark._native import NativeDetector, coin_threshold
from spiritsafe.watermark._types import Scheme

KEY_ID = KeyId("ks_00000000", "e", 0)


def key_set(folder: Path, **marking: Any) -> KeySet:
    """A key set with a fresh secret."""
    number = len(list(folder.glob("keys-*.json")))
    return new_keys(folder / f"keys-{number}.json", marking=marking, epoch="2026-11")


def fresh_keys(random: np.random.Generator, count: int) -> np.ndarray:
    """(count, 2) words."""
    return random.integers(0, 2**64, (count, 2), np.uint64)


def fresh_marker(
    scheme: Scheme, random: np.random.Generator, *, surprise_bits: float = 0.0, account_share: float = 0.5, **how: Any
) -> Marker:
    """A marker whose three keys nobody has used before."""
    coin, epoch, account = fresh_keys(random, 3)
    layers = _Layers(scheme, coin, epoch, account, coin_threshold(account_share))
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} | how
    return Marker(layers, KEY_ID, None, surprise_bits, np.random.default_rng(random.integers(2**63)), **sampling)


class Language:
    """Tokens whose next one depends on the last alone: logits (V, V), entropy known exactly."""

    def __init__(self, vocab: int, spread: float, seed: int = 0) -> None:
        self.vocab = vocab
        self.logits_VV = torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (vocab, vocab))).float()

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """(V, V) float64; a row is the law of the next token."""
        return torch.softmax(self.logits_VV.double() / temperature, -1).numpy()

    def replies(self, markers: Sequence[Marker], length: int, prompt: Any = (0, 1)) -> np.ndarray:
        """(B, length) tokens, one reply a marker; `prompt` is one for all, or (B, T)."""
        ids = torch.from_numpy(np.broadcast_to(np.atleast_2d(prompt), (len(markers), np.shape(prompt)[-1])).copy())
        for _ in range(length):
            k = markers[0].scheme.context_width
            chosen = choose_marked(markers, ids[:, -k:].tolist(), self.logits_VV[ids[:, -1]])
            ids = torch.cat([ids, chosen[:, None]], 1)
        return ids[:, np.shape(prompt)[-1] :].numpy()


def repetitive_documents(length: int = 400, count: int = 12) -> list[np.ndarray]:
    """Licence text, source code and templated replies as word ids: text that repeats itself as real text does."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    licence = (Path(__file__).parents[2] / "LICENSE").read_text()
    code = (stdlib / "argparse.py").read_text() + (stdlib / "enum.py").read_text()
    template = "Sure! Here is what {0} does: it takes {0} and returns {1}. I hope this helps with {0}!\n"
    replies = "".join(template.format(f"item{i % 7}", f"value{i % 5}") for i in range(400))
    documents: list[np.ndarray] = []
    names: dict[str, int] = {}
    for text in (licence, code, replies):
        words = re.findall(r"\w+|\s+|[^\w\s]", text)
        ids = np.array([names.setdefault(word, len(names)) for word in words], np.uint32)
        cuts = range(0, len(ids) - length, length)
        documents += [ids[at : at + length] for at in list(cuts)[: count // 3]]
    return documents


def unique(detector: NativeDetector, ids: np.ndarray) -> Any:
    """A document's reading, each input once."""
    reading = detector.read(ids, 0)
    first = np.unique(reading.inputs, return_index=True)[1]
    keep = np.zeros(len(reading.inputs), bool)
    keep[first] = True
    return reading.take(keep)
