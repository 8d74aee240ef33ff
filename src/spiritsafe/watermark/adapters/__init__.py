"""Detectors of the marks that serving engines write, bit for bit as the engine hashes them; a file an engine family."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from spiritsafe.errors import BadInput
from spiritsafe.watermark._types import Detector

__all__ = ["ENGINES", "engine_detector"]

_CLASSES = {
    "vllm-gumbel": ("_vllm", "VllmGumbel"),
    "vllm-dual": ("_vllm", "VllmDual"),
    "sglang-gumbel": ("_sglang", "SglangGumbel"),
    "sglang-dual": ("_sglang", "SglangDual"),
    "hf-kgw": ("_hf_kgw", "HfKgw"),
    "hf-synthid": ("_hf_synthid", "HfSynthId"),
}
ENGINES = tuple(_CLASSES)


def engine_detector(engine: str, params: Mapping[str, Any]) -> Detector:
    """The detector of `engine`'s own marks, given the engine's own parameters (its field names and values).

    Raises:
        BadInput: no such engine, or a parameter that the engine version checked against does not have.
    """
    if engine not in _CLASSES:
        near = difflib.get_close_matches(engine, ENGINES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(f"unknown engine {engine}; there are {', '.join(ENGINES)}{hint}")
    module, name = _CLASSES[engine]
    family = getattr(import_module(f"{__name__}.{module}"), name)
    detector: Detector = family.from_params(params)
    return detector
