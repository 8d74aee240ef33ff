"""Prompts → exchanges: what is asked, what it may cost, and every answer kept."""

from spiritsafe.collect._config import CollectConfig
from spiritsafe.collect._prompts import PromptsConfig, assign_splits, load_prompts

__all__ = ["CollectConfig", "PromptsConfig", "assign_splits", "load_prompts"]
