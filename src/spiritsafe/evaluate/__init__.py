"""Student against teacher: fidelity, what training recovered, speed, and answers side by side."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spiritsafe.evaluate._config import EvaluateConfig

if TYPE_CHECKING:
    from spiritsafe.evaluate._evaluate import evaluate

__all__ = ["EvaluateConfig", "evaluate"]


def __getattr__(name: str) -> Any:
    """`evaluate` needs torch and loads on first use; a recipe only needs the config."""
    if name == "evaluate":
        return import_module("spiritsafe.evaluate._evaluate").evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
