"""`spiritsafe distill`: the whole pipeline, or what it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spiritsafe.cli._output import AcceptTerms, Json, RegistryFile, Set, print_json

if TYPE_CHECKING:
    from spiritsafe.distill import Distillation
    from spiritsafe.runs import Run

__all__ = ["print_run", "register"]

_EXAMPLES = """
Examples:\n
  spiritsafe distill recipe.yaml --estimate\n
  spiritsafe distill recipe.yaml --set collect.budget_usd=5\n
  spiritsafe distill recipe.yaml --run runs/second --json
"""


def register(app: typer.Typer) -> None:
    @app.command(epilog=_EXAMPLES)
    def distill(
        recipe: Annotated[Path, typer.Argument(help="A recipe (YAML), or the directory of an earlier run.")],
        run: Annotated[Path | None, typer.Option("--run", help="Run directory; runs/NAME unless given.")] = None,
        estimate: Annotated[
            bool, typer.Option("--estimate", help="Say dollars, tokens and time; spend nothing but a small probe.")
        ] = False,
        probe: Annotated[bool, typer.Option(help="With --estimate: let it ask the teacher a few requests.")] = True,
        overrides: Set = None,
        accept_terms: AcceptTerms = None,
        registry: RegistryFile = None,
        as_json: Json = False,
    ) -> None:
        """Collect, curate, train, evaluate and report; resumes what is done."""
        from spiritsafe.cli._job import open_job
        from spiritsafe.cli._progress import watching
        from spiritsafe.distill import distill as distill_all

        with watching() as progress:
            job = open_job(recipe, run, overrides, accept_terms, registry, progress)
            if estimate:
                _estimate(job, probe, as_json)
                return
            distill_all(job)
        print_run(job.run, as_json)


def print_run(run: Run, as_json: bool) -> None:
    """What a finished run came to: its metrics as JSON, or the few numbers a person wants first."""
    import json

    metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
    if as_json:
        print_json(metrics)
        return
    student, untrained = metrics["student"], metrics.get("best_untrained")
    recovered = metrics["recovered"]
    if metrics["teacher"]["nll"] is not None:
        print(f"NLL gap to the teacher   {student['nll'] - metrics['teacher']['nll']:.3f} nat/{metrics['nll_unit']}")
    if student["top1_agreement"] is not None:
        print(f"top-1 agreement          {student['top1_agreement']:.3f}")
        print(f"forward KL               {student['kl']:.3f} nat/token")
    if untrained:
        print(
            f"best untrained prune     {untrained['layers']} layers: agreement {untrained['top1_agreement']:.3f}, "
            f"KL {untrained['kl']:.3f}"
        )
    if recovered["value"] is None:
        print(f"recovered                not reported: {recovered.get('refused', 'no reason recorded')}")
    else:
        low, high = recovered["ci95"]
        print(
            f"recovered                {recovered['value']:.1%} of the NLL gap (95 % interval {low:.1%} to {high:.1%})"
        )
    collected = metrics["collected"]
    print(f"spent                    ${collected['usd']:.4f} for {collected['exchanges']} exchanges")
    print(f"report                   {run.report}")


def _estimate(job: Distillation, probe: bool, as_json: bool) -> None:
    from spiritsafe.distill import estimate_recipe

    estimate = estimate_recipe(job, probe=probe)
    if as_json:
        print_json(estimate.to_dict())
    else:
        print(estimate.render())
