"""Training set → student: initialisers, losses, the logit cache and the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spiritsafe.train._config import LoraConfig, StudentConfig, TrainConfig
from spiritsafe.train._examples import Example, Vocabulary, encode_exchange

if TYPE_CHECKING:
    from spiritsafe.train._loss import Head, LossWeights, Metrics, fused_loss

__all__ = [
    "Example",
    "Head",
    "LoraConfig",
    "LossWeights",
    "Metrics",
    "StudentConfig",
    "TrainConfig",
    "Vocabulary",
    "encode_exchange",
    "fused_loss",
]

# What needs torch is loaded on first use: a recipe is checked without it.
_LAZY = dict.fromkeys(("Head", "LossWeights", "Metrics", "fused_loss"), "_loss")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
