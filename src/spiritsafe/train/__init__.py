"""Training set → student: initialisers, losses, the logit cache and the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spiritsafe.train._config import LoraConfig, StudentConfig, TrainConfig
from spiritsafe.train._examples import Example, Vocabulary, encode_exchange

if TYPE_CHECKING:
    from spiritsafe.train._cache import CacheInfo, LogitCache, write_cache
    from spiritsafe.train._init import (
        Source,
        Student,
        init_student,
        load_source,
        save_student,
    )
    from spiritsafe.train._loop import TrainResult, TrainStep, train
    from spiritsafe.train._loss import Head, LossWeights, Metrics, fused_loss
    from spiritsafe.train._prune import even_layers, prune_layers, sensitivity, sensitivity_layers

__all__ = [
    "CacheInfo",
    "Example",
    "Head",
    "LogitCache",
    "LoraConfig",
    "LossWeights",
    "Metrics",
    "Source",
    "Student",
    "StudentConfig",
    "TrainConfig",
    "TrainResult",
    "TrainStep",
    "Vocabulary",
    "encode_exchange",
    "even_layers",
    "fused_loss",
    "init_student",
    "load_source",
    "prune_layers",
    "save_student",
    "sensitivity",
    "sensitivity_layers",
    "train",
    "write_cache",
]

# What needs torch is loaded on first use: a recipe is checked without it.
_LAZY = {
    **dict.fromkeys(("CacheInfo", "LogitCache", "write_cache"), "_cache"),
    **dict.fromkeys(("Head", "LossWeights", "Metrics", "fused_loss"), "_loss"),
    **dict.fromkeys(("TrainResult", "TrainStep", "train"), "_loop"),
    **dict.fromkeys(("Source", "Student", "init_student", "load_source", "save_student"), "_init"),
    **dict.fromkeys(("even_layers", "prune_layers", "sensitivity", "sensitivity_layers"), "_prune"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
