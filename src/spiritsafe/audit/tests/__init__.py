"""The tests, one file each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spiritsafe.audit._evidence import Evidence
    from spiritsafe.audit._plan import TestConfig
    from spiritsafe.audit._types import Test

__all__ = ["open_test"]

_CLASSES = {
    "radioactivity": "Radioactivity",
    "twins": "Twins",
    "canaries": "Canaries",
    "lineage": "Lineage",
    "equality": "Equality",
    "similarity": "Similarity",
}


def open_test(config: TestConfig, evidence: Evidence) -> Test:
    """The test of that kind, with its inputs read and checked.

    Raises:
        BadInput: an input cannot be read, or does not fit what was committed to.
    """
    module = import_module(f"{__name__}.{config.kind}")
    test: Test = getattr(module, _CLASSES[config.kind])(config, evidence)
    return test
