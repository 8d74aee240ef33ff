"""`spiritsafe terms list|show|check`: what the registry says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spiritsafe.cli._output import Json, RegistryFile, print_json, print_table

if TYPE_CHECKING:
    from spiritsafe.terms import DatasetTerms, Decision, Registry

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    terms = typer.Typer(
        help="Whose outputs may train a model, as far as the registry knows. Not legal advice.", no_args_is_help=True
    )
    app.add_typer(terms, name="terms")

    @terms.command("list")
    def list_entries(registry: RegistryFile = None, as_json: Json = False) -> None:
        """Every entry of the registry."""
        loaded = _load(registry)
        if as_json:
            print_json({"version": loaded.version, "entries": [e.model_dump(mode="json") for e in loaded.entries]})
            return
        rows = [[e.id, e.kind, e.status, str(e.checked or "unchecked"), e.name] for e in loaded.entries]
        print_table(["id", "kind", "status", "checked", "name"], rows)
        print(f"\nregistry {loaded.version}; not legal advice")

    @terms.command()
    def show(entry_id: str, registry: RegistryFile = None, as_json: Json = False) -> None:
        """One entry, whole."""
        entry = _load(registry).get(entry_id)
        if as_json:
            print_json(entry.model_dump(mode="json"))
            return
        import yaml

        print(yaml.safe_dump(entry.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True))
        print("not legal advice")

    @terms.command(
        epilog="Examples: spiritsafe terms check recipe.yaml · spiritsafe terms check runs/demo/curated.parquet"
    )
    def check(
        target: Annotated[Path, typer.Argument(help="A recipe (YAML) or a dataset (Parquet).")],
        registry: RegistryFile = None,
        as_json: Json = False,
    ) -> None:
        """May this recipe's teacher, or every row of this dataset, train a model? Exits 3 if not."""
        from spiritsafe.terms import check_dataset

        loaded = _load(registry)
        if target.suffix.lower() in (".yaml", ".yml"):
            from spiritsafe.cli._job import read_recipe
            from spiritsafe.distill import decide_recipe

            recipe, _ = read_recipe(target, None)
            verdict: Decision | DatasetTerms = decide_recipe(loaded, recipe)
        else:
            verdict = check_dataset(target, loaded)
        if as_json:
            print_json(verdict.to_dict())
        else:
            print(verdict.render())
        if not verdict.permits:
            raise typer.Exit(3)


def _load(registry: str | None) -> Registry:
    from spiritsafe.terms import Registry

    return Registry.load(Path(registry) if registry else None)
