"""The stages in order, each skipped when its inputs and outputs are what they were.

A stage's fingerprint covers what decides its result and nothing else: a larger budget, another port or another
concurrency never makes anything run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spiritsafe.collect import collect, load_prompts
from spiritsafe.curate import curate
from spiritsafe.distill._export import export
from spiritsafe.distill._recipe import Recipe
from spiritsafe.distill._terms import check_dataset_terms, check_recipe_terms
from spiritsafe.distill._versions import versions
from spiritsafe.errors import BadInput
from spiritsafe.progress import Progress, Silent
from spiritsafe.runs import Run, hash_path, hash_value
from spiritsafe.terms import Registry

__all__ = ["STAGES", "Distillation", "distill"]

STAGES = ("collect", "curate", "train", "evaluate", "export", "report")

_HOW_NOT_WHAT = {
    *("budget_usd", "max_requests", "max_tokens_total", "max_seconds"),
    *("concurrency", "retries", "tolerate_missing", "reuse"),
}


@dataclass(frozen=True, slots=True)
class Distillation:
    """One run of one recipe: what every stage is given.

    accept_terms: the reason to go on where the terms registry refuses.   render: writes the run's report.
    """

    run: Run
    recipe: Recipe
    registry: Registry
    accept_terms: str | None = None
    progress: Progress = field(default_factory=Silent)
    render: Callable[[Run], Path] | None = None

    def facts(self, stage: str) -> dict[str, Any]:
        """What a finished stage noted about itself."""
        done: dict[str, Any] = self.run.manifest().get("stages", {}).get(stage, {})
        return done


def distill(job: Distillation, stages: tuple[str, ...] = STAGES) -> None:
    """Run `stages` in order, skipping what is done. Holds the run's lock throughout.

    Raises:
        Refused: terms or a budget say no; nothing was spent beyond the caps.
        BadInput: the recipe, the prompts or an earlier stage's output are unusable.
        Interrupted: stopped by the user; run the same command again to continue.
    """
    with job.run.lock():
        _open_manifest(job)
        for stage in stages:
            _STAGES[stage](job)


def _open_manifest(job: Distillation) -> None:
    manifest = job.run.manifest()
    job.run.update_manifest(
        name=job.recipe.name,
        created=manifest.get("created") or datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=job.recipe.model_dump(mode="json"),
        seeds={"recipe": job.recipe.seed},
        versions=versions(),
    )


def _once(
    job: Distillation, stage: str, inputs: Any, work: Callable[[], tuple[Mapping[str, Path], dict[str, Any]]]
) -> None:
    fingerprint = hash_value(inputs)
    if job.run.stage_is_done(stage, fingerprint):
        job.progress.say(f"{stage}: already done, nothing to do")
        return
    started = time.monotonic()
    outputs, facts = work()
    job.run.record_stage(stage, fingerprint, outputs, seconds=round(time.monotonic() - started, 2), **facts)


def _collect(job: Distillation) -> None:
    recipe, run = job.recipe, job.run
    terms = check_recipe_terms(job, "collect")
    prompts = load_prompts(recipe.prompts, progress=job.progress)
    asked = recipe.collect.model_dump(mode="json", exclude=_HOW_NOT_WHAT)
    inputs = [recipe.teacher.model_id, [p.id for p in prompts], asked, recipe.evaluate.holdout, recipe.seed]

    def work() -> tuple[dict[str, Path], dict[str, Any]]:
        summary = collect(
            run,
            recipe.teacher,
            prompts,
            recipe.collect,
            holdout=recipe.evaluate.holdout,
            seed=recipe.seed,
            terms=terms,
            progress=job.progress,
        )
        return {"exchanges": run.exchanges}, {"summary": summary.to_dict()}

    _once(job, "collect", inputs, work)


def _curate(job: Distillation) -> None:
    run = job.run
    inputs = [job.recipe.curate.model_dump(mode="json"), _hash_of(run.exchanges, "collect")]

    def work() -> tuple[dict[str, Path], dict[str, Any]]:
        report = curate(run, job.recipe.curate, progress=job.progress)
        return {"curated": run.curated, "curation": run.curation}, {"summary": report.to_dict()}

    _once(job, "curate", inputs, work)


def _train(job: Distillation) -> None:
    from spiritsafe.train import train

    recipe, run = job.recipe, job.run
    check_dataset_terms(job, "train")
    inputs = [
        recipe.student.model_dump(mode="json"),
        recipe.train.model_dump(mode="json"),
        recipe.teacher_weights,
        _hash_of(run.curated, "curate"),
    ]

    def work() -> tuple[dict[str, Path], dict[str, Any]]:
        result = train(run, recipe.train, recipe.student, teacher_source=recipe.teacher_weights, progress=job.progress)
        return _student_files(run), {"summary": result.to_dict()}

    _once(job, "train", inputs, work)


def _evaluate(job: Distillation) -> None:
    from spiritsafe.evaluate import evaluate

    recipe, run = job.recipe, job.run
    inputs = [
        recipe.evaluate.model_dump(mode="json"),
        _hash_of(run.curated, "curate"),
        [hash_path(file) for file in _student_files(run).values()],
    ]

    def work() -> tuple[dict[str, Path], dict[str, Any]]:
        facts = {
            "collected": job.facts("collect").get("summary", {}),
            "curated": job.facts("curate").get("summary", {}),
            "train": job.facts("train").get("summary", {}),
        }
        evaluate(
            run,
            recipe.evaluate,
            student_config=recipe.student,
            teacher_source=recipe.teacher_weights,
            teacher_price=recipe.teacher.price,
            facts=facts,
            progress=job.progress,
        )
        return {"metrics": run.metrics, "samples": run.samples}, {}

    _once(job, "evaluate", inputs, work)


def _export(job: Distillation) -> None:
    decision = check_dataset_terms(job, "export")
    inputs = [job.recipe.name, _hash_of(job.run.metrics, "evaluate"), _judgements(job.run)]
    _once(job, "export", inputs, lambda: (export(job.run, job.recipe, decision), {}))


def _report(job: Distillation) -> None:
    run, render = job.run, job.render
    if render is None:
        return
    shown = [p for p in (run.metrics, run.samples, run.curation, run.train_log) if p.exists()]
    inputs = [[hash_path(p) for p in shown], _judgements(run), job.recipe.name]
    _once(job, "report", inputs, lambda: ({"report": render(run)}, {}))


def _judgements(run: Run) -> list[dict[str, Any]]:
    """The terms records without who and when: judging the same thing again changes nothing."""
    return [{k: v for k, v in record.items() if k not in ("who", "when")} for record in run.manifest().get("terms", [])]


def _student_files(run: Run) -> dict[str, Path]:
    """The files of the student that decide what it says; the card and notices are written later."""
    weights = sorted(run.student.glob("*.safetensors")) if run.student.is_dir() else []
    if not weights:
        raise BadInput(f"{run.student}: no student here; run `spiritsafe train` on this run first")
    return {file.name: file for file in [*weights, run.student / "config.json"]}


def _hash_of(path: Path, stage: str) -> str:
    if not path.exists():
        raise BadInput(f"{path}: missing; run `spiritsafe {stage}` on this run first")
    return hash_path(path)


_STAGES: dict[str, Callable[[Distillation], None]] = {
    "collect": _collect,
    "curate": _curate,
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
}
