"""`distill --estimate`: what the whole recipe would cost, before anything but a small probe is spent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spiritsafe.collect import Estimate, estimate, load_prompts
from spiritsafe.distill._terms import check_recipe_terms

if TYPE_CHECKING:
    from spiritsafe.distill._stages import Distillation

__all__ = ["RecipeEstimate", "estimate_recipe"]

_PROBE_REQUESTS = 3


@dataclass(frozen=True, slots=True)
class RecipeEstimate:
    """What collection still costs, and the tokens that training will then push through the student."""

    collect: Estimate
    train_tokens: int

    def to_dict(self) -> dict[str, Any]:
        return {"collect": self.collect.to_dict(), "train": {"tokens": self.train_tokens}}

    def render(self) -> str:
        return f"{self.collect.render()}\n{'training':18} about {self.train_tokens:,} tokens through the student"


def estimate_recipe(job: Distillation, *, probe: bool) -> RecipeEstimate:
    """Dollars, tokens and time of a recipe; the probe's answers are kept and never paid for again.

    Raises:
        Refused: the terms say no, or the caps leave no room for the probe. Nothing was sent.
    """
    recipe = job.recipe
    with job.run.lock():
        check_recipe_terms(job, "collect")
        prompts = load_prompts(recipe.prompts, progress=job.progress)
        collection = estimate(
            job.run,
            recipe.teacher,
            prompts,
            recipe.collect,
            probe=_PROBE_REQUESTS if probe else 0,
            progress=job.progress,
        )
    per_epoch = (collection.tokens_in + collection.tokens_out) * (1 - recipe.evaluate.holdout)
    return RecipeEstimate(collection, round(per_epoch * recipe.train.epochs))
