"""Marks in generated text: PRFs, schemes, engine adapters; mark, detect, trace.

Names are imported when asked for: the numerical libraries behind them take a second.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from spiritsafe.watermark._openmp import limit_numba

if TYPE_CHECKING:
    from spiritsafe.watermark._accounts import Accounts, read_accounts
    from spiritsafe.watermark._corpus import DECOY_SEED, Corpus, Row
    from spiritsafe.watermark._documents import Document, Documents, batch_encoder
    from spiritsafe.watermark._entropy import entropy_weights, weighted_log10_tail
    from spiritsafe.watermark._llama_cpp import LlamaLogitsProcessor
    from spiritsafe.watermark._marker import Marker, Markers
    from spiritsafe.watermark._marking import MarkerConfig, Marking
    from spiritsafe.watermark._native import NativeDetector
    from spiritsafe.watermark._spans import Span, find_spans
    from spiritsafe.watermark._trace import Candidate, Traced, Tracer
    from spiritsafe.watermark._transformers import WatermarkLogitsProcessor
    from spiritsafe.watermark._types import Detector, Reading, Scheme, Scores, TailOfInputs
    from spiritsafe.watermark.adapters import ENGINES, engine_detector
    from spiritsafe.watermark.schemes import scheme_for

__all__ = [
    "DECOY_SEED",
    "ENGINES",
    "Accounts",
    "Candidate",
    "Corpus",
    "Detector",
    "Document",
    "Documents",
    "LlamaLogitsProcessor",
    "Marker",
    "MarkerConfig",
    "Markers",
    "Marking",
    "NativeDetector",
    "Reading",
    "Row",
    "Scheme",
    "Scores",
    "Span",
    "TailOfInputs",
    "Traced",
    "Tracer",
    "WatermarkLogitsProcessor",
    "batch_encoder",
    "engine_detector",
    "entropy_weights",
    "find_spans",
    "read_accounts",
    "scheme_for",
    "weighted_log10_tail",
]

limit_numba(os.environ)

_HOMES = {
    "_accounts": ("Accounts", "read_accounts"),
    "_corpus": ("DECOY_SEED", "Corpus", "Row"),
    "_documents": ("Document", "Documents", "batch_encoder"),
    "_entropy": ("entropy_weights", "weighted_log10_tail"),
    "_llama_cpp": ("LlamaLogitsProcessor",),
    "_marker": ("Marker", "Markers"),
    "_marking": ("MarkerConfig", "Marking"),
    "_native": ("NativeDetector",),
    "_spans": ("Span", "find_spans"),
    "_trace": ("Candidate", "Traced", "Tracer"),
    "_transformers": ("WatermarkLogitsProcessor",),
    "_types": ("Detector", "Reading", "Scheme", "Scores", "TailOfInputs"),
    "adapters": ("ENGINES", "engine_detector"),
    "schemes": ("scheme_for",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
