"""Low-rank adapters (Hu et al., 2021) through peft: trained beside frozen weights, merged when the student is saved."""

from __future__ import annotations

import warnings
from typing import Any

from spiritsafe.train._config import LoraConfig

__all__ = ["add_lora", "merge_lora"]


def add_lora(model: Any, config: LoraConfig | None) -> Any:
    """`model` itself without a config; else wrapped, with adapters on every linear layer but the head."""
    if config is None:
        return model
    import peft

    adapters = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers for an attribute that transformers has renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return peft.get_peft_model(model, adapters)


def merge_lora(model: Any) -> Any:
    """Plain transformers weights again."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
