"""Draws the schemes' figures with the schemes' own code: `.venv/bin/python docs/watermark/figures.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from spiritsafe.watermark._prf import context_hashes, key_words, uniform, values
from spiritsafe.watermark.schemes import Gumbel, Kgw, SynthId

HERE = Path(__file__).parent
WORDS = ("the", "copper", "a", "old", "still", "new", "red", "clean")
P = np.array([0.34, 0.22, 0.15, 0.1, 0.08, 0.05, 0.04, 0.02])
KEY, WINDOW = key_words(bytes(range(16)))[0], np.array([[11, 7]], np.uint32)
MODEL, MARK = "0.75", "tab:green"


def main() -> None:
    h = context_hashes(KEY, WINDOW)
    z = values(KEY, np.repeat(WINDOW, len(P), 0), np.arange(len(P), dtype=np.uint32))
    probs = torch.tensor(P[None], dtype=torch.float32)
    gumbel(h, z, probs)
    other = context_hashes(KEY, np.array([[11, 11]], np.uint32))  # a context that leaves three of the eight green
    before_after(Kgw(2, 0.25, 2.0), other, probs, "kgw", "green tokens' odds are multiplied by e^δ, δ = 2")
    before_after(SynthId(2, 30), h, probs, "synthid", "after 30 rounds of the tournament")


def gumbel(h: np.ndarray, z: np.ndarray, probs: torch.Tensor) -> None:
    u = np.array([uniform(v) for v in z])
    arrival = -np.log(u) / P
    chosen = int(Gumbel(2).mark(h, probs).argmax())
    assert chosen == int(arrival.argmin())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    colours = [MARK if i == chosen else MODEL for i in range(len(P))]
    left.barh(WORDS, P, color=colours)
    left.set_xlabel("the model's probability p")
    right.barh(WORDS, arrival, color=colours)
    right.set_xlabel("arrival time −ln(u) / p; the first one wins")
    left.invert_yaxis()
    save(figure, "gumbel")


def before_after(scheme: Kgw | SynthId, h: np.ndarray, probs: torch.Tensor, name: str, what: str) -> None:
    marked = scheme.mark(h, probs.clone())[0].numpy()
    figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    place = np.arange(len(P))
    axis.bar(place - 0.2, P, 0.4, color=MODEL, label="the model's distribution")
    axis.bar(place + 0.2, marked, 0.4, color=MARK, label=what)
    axis.set_xticks(place, WORDS)
    axis.set_ylabel("probability")
    axis.legend(frameon=False)
    save(figure, name)


def save(figure: plt.Figure, name: str) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE.parent / "img" / f"watermark-{name}.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
