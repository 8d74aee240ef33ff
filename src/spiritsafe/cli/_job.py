"""From arguments to a distillation: the recipe, its run directory, its registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    from spiritsafe.distill import Distillation, Recipe
    from spiritsafe.progress import Progress

__all__ = ["open_job", "read_recipe"]


def read_recipe(target: Path, overrides: list[str] | None) -> tuple[Recipe, Path]:
    """The recipe of a YAML file or of an existing run directory, and the run directory it goes with.

    Raises:
        BadInput: neither a readable recipe nor a run directory with a manifest.
    """
    from spiritsafe.config import load_config, parse_config, with_overrides
    from spiritsafe.distill import Recipe
    from spiritsafe.runs import Run

    if target.is_dir():
        recorded = Run(target).manifest().get("recipe")
        if recorded is None:
            raise BadInput(f"{target}: no manifest with a recipe here; give a recipe file or a run directory")
        return parse_config(with_overrides(recorded, overrides or ()), Recipe, where=f"{target}/manifest.json"), target
    recipe = load_config(target, Recipe, overrides or ())
    return recipe, recipe.default_run


def open_job(
    target: Path,
    run: Path | None,
    overrides: list[str] | None,
    accept_terms: str | None,
    registry: str | None,
    progress: Progress,
) -> Distillation:
    """Everything a stage needs, from what a command was given."""
    from spiritsafe.distill import Distillation
    from spiritsafe.report import render_run
    from spiritsafe.runs import Run
    from spiritsafe.terms import Registry

    recipe, default_run = read_recipe(target, overrides)
    return Distillation(
        run=Run.open(run or default_run),
        recipe=recipe,
        registry=Registry.load(Path(registry) if registry else None),
        accept_terms=accept_terms,
        progress=progress,
        render=render_run,
    )
