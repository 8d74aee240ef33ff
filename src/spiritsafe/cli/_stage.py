"""`spiritsafe collect|curate|train|evaluate`: one stage of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spiritsafe.cli._output import AcceptTerms, Json, RegistryFile, Set, print_json

__all__ = ["RunDir", "register", "run_stage"]

Target = Annotated[Path, typer.Argument(help="A recipe (YAML), or the directory of a run.")]
RunDir = Annotated[Path | None, typer.Option("--run", help="Run directory; runs/NAME unless given.")]


def register(app: typer.Typer) -> None:
    @app.command(epilog="Example: spiritsafe collect recipe.yaml --set collect.concurrency=16")
    def collect(
        target: Target,
        run: RunDir = None,
        reconcile: Annotated[
            bool,
            typer.Option(
                "--reconcile",
                help="Release reservations of requests in flight at a crash, after you have read the provider's bill.",
            ),
        ] = False,
        overrides: Set = None,
        accept_terms: AcceptTerms = None,
        registry: RegistryFile = None,
        as_json: Json = False,
    ) -> None:
        """Ask the teacher every prompt, within the caps; never pays twice for the same request."""
        if reconcile:
            _reconcile(target, run, overrides, as_json)
        else:
            run_stage("collect", target, run, overrides, accept_terms, registry, as_json)

    @app.command(epilog="Example: spiritsafe curate runs/demo --set 'curate=[exact_dedup, near_dedup]'")
    def curate(target: Target, run: RunDir = None, overrides: Set = None, as_json: Json = False) -> None:
        """Turn exchanges into a training set; counts every drop with its reason."""
        run_stage("curate", target, run, overrides, None, None, as_json)

    @app.command(epilog="Example: spiritsafe train runs/demo --set train.epochs=3")
    def train(
        target: Target,
        run: RunDir = None,
        overrides: Set = None,
        accept_terms: AcceptTerms = None,
        registry: RegistryFile = None,
        as_json: Json = False,
    ) -> None:
        """Train the student; continues from the last checkpoint."""
        run_stage("train", target, run, overrides, accept_terms, registry, as_json)

    @app.command(epilog="Example: spiritsafe evaluate runs/demo --json")
    def evaluate(
        target: Target,
        run: RunDir = None,
        overrides: Set = None,
        accept_terms: AcceptTerms = None,
        registry: RegistryFile = None,
        as_json: Json = False,
    ) -> None:
        """Measure the student against its teacher on held-out prompts, and write its model card."""
        run_stage("evaluate", target, run, overrides, accept_terms, registry, as_json)


def run_stage(
    stage: str,
    target: Path,
    run: Path | None,
    overrides: list[str] | None,
    accept_terms: str | None,
    registry: str | None,
    as_json: bool,
) -> None:
    """Do one stage, and print what it wrote."""
    from spiritsafe.cli._job import open_job
    from spiritsafe.cli._progress import watching
    from spiritsafe.distill import distill

    with watching() as progress:
        job = open_job(target, run, overrides, accept_terms, registry, progress)
        distill(job, stages=("evaluate", "export") if stage == "evaluate" else (stage,))
    facts = job.facts(stage)
    outputs = {name: str(job.run.path / output["path"]) for name, output in facts["outputs"].items()}
    summary: dict[str, Any] = facts.get("summary", {})
    if as_json:
        print_json({"stage": stage, "run": str(job.run.path), "outputs": outputs, "summary": summary})
        return
    for name, path in outputs.items():
        print(f"{name}: {path}")


def _reconcile(target: Path, run: Path | None, overrides: list[str] | None, as_json: bool) -> None:
    from spiritsafe.cli._job import read_recipe
    from spiritsafe.collect import reconcile
    from spiritsafe.runs import Run

    _, default_run = read_recipe(target, overrides)
    opened = Run.open(run or default_run)
    with opened.lock():
        released = reconcile(opened)
    if as_json:
        print_json(released.to_dict())
    else:
        print(f"released {released.attempts} reservations, ${released.usd:.4f}")
