"""From a recipe to a measured student: the stages in order, resumable, with their terms checked."""

from spiritsafe.distill._demo import prepare_demo, run_demo
from spiritsafe.distill._estimate import RecipeEstimate, estimate_recipe
from spiritsafe.distill._recipe import Recipe
from spiritsafe.distill._stages import STAGES, Distillation, distill
from spiritsafe.distill._terms import decide_recipe

__all__ = [
    "STAGES",
    "Distillation",
    "Recipe",
    "RecipeEstimate",
    "decide_recipe",
    "distill",
    "estimate_recipe",
    "prepare_demo",
    "run_demo",
]
