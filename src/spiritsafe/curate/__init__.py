"""Exchanges → training set: steps that drop rows, each drop counted with its reason."""

from spiritsafe.curate._config import CurateConfig
from spiritsafe.curate._curate import curate
from spiritsafe.curate._report import CurationReport, Example, StepReport
from spiritsafe.curate._step import Check, Context, Row, Step
from spiritsafe.curate.steps import STEPS

__all__ = [
    "STEPS",
    "Check",
    "Context",
    "CurateConfig",
    "CurationReport",
    "Example",
    "Row",
    "Step",
    "StepReport",
    "curate",
]
