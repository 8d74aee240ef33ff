"""What can answer a prompt: any OpenAI-compatible API, or local weights."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spiritsafe.teachers._base import Answer, Teacher, TeacherError
from spiritsafe.teachers._config import TeacherConfig, open_teacher

if TYPE_CHECKING:
    from spiritsafe.teachers._api import ApiTeacher
    from spiritsafe.teachers._engine import Engine, GenerateJob, Generation
    from spiritsafe.teachers._local import LocalTeacher
    from spiritsafe.teachers._probe import ProbeReport, probe
    from spiritsafe.teachers._score import iter_top_k_logprobs, top_k_logprobs
    from spiritsafe.teachers._server import serve_local
    from spiritsafe.teachers._weights import Weights, load_tokenizer, load_weights

__all__ = [
    "Answer",
    "ApiTeacher",
    "Engine",
    "GenerateJob",
    "Generation",
    "LocalTeacher",
    "ProbeReport",
    "Teacher",
    "TeacherConfig",
    "TeacherError",
    "Weights",
    "iter_top_k_logprobs",
    "load_tokenizer",
    "load_weights",
    "open_teacher",
    "probe",
    "serve_local",
    "top_k_logprobs",
]

# What needs torch, or is seldom needed, loads on first use: `import spiritsafe.teachers` stays light.
_LAZY = {
    "ApiTeacher": "_api",
    "Engine": "_engine",
    "GenerateJob": "_engine",
    "Generation": "_engine",
    "LocalTeacher": "_local",
    "ProbeReport": "_probe",
    "probe": "_probe",
    "Weights": "_weights",
    "iter_top_k_logprobs": "_score",
    "serve_local": "_server",
    "top_k_logprobs": "_score",
    "load_tokenizer": "_weights",
    "load_weights": "_weights",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
