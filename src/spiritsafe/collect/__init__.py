"""Prompts → exchanges: what is asked, what it may cost, and every answer kept."""

from spiritsafe.collect._collect import CollectSummary, Reconciled, collect, reconcile
from spiritsafe.collect._config import CollectConfig
from spiritsafe.collect._estimate import Estimate, estimate
from spiritsafe.collect._prompts import PromptsConfig, assign_splits, load_prompts

__all__ = [
    "CollectConfig",
    "CollectSummary",
    "Estimate",
    "PromptsConfig",
    "Reconciled",
    "assign_splits",
    "collect",
    "estimate",
    "load_prompts",
    "reconcile",
]
