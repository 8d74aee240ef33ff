"""The model under test: local weights, or whatever answers at an address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spiritsafe.audit._plan import SubjectConfig

if TYPE_CHECKING:
    from spiritsafe.audit._types import Suspect
    from spiritsafe.spend import Budget

__all__ = ["open_suspect"]


def open_suspect(source: str, subject: SubjectConfig, *, budget: Budget | None = None) -> Suspect:
    """Whatever `source` names: an http(s) address of an OpenAI-compatible API, else weights (a GGUF file, a folder, a hub id)."""
    raise NotImplementedError
