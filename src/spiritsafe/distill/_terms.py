"""The terms gate, where the pipeline calls it: before money is spent, before training, before export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritsafe.distill._recipe import Recipe
from spiritsafe.terms import Decision, Registry, TermsRecord, check_dataset, combine, decide, gate

if TYPE_CHECKING:
    from spiritsafe.distill._stages import Distillation

__all__ = ["check_dataset_terms", "check_recipe_terms", "decide_recipe"]


def decide_recipe(registry: Registry, recipe: Recipe) -> Decision:
    """What the registry says of a recipe: the teacher's host, model, declaration and local weights.

    Weights are judged by their name, and only where the registry knows it: that can tighten, never loosen.
    """
    teacher = recipe.teacher
    asked = decide(registry, host=teacher.host, model=teacher.model_id, declared=teacher.terms)
    sources = {source for source in (teacher.weights, recipe.student.source) if source}
    known = [Path(s).name for s in sources if registry.for_model(Path(s).name)]
    known += [s for s in sources if not Path(s).exists() and registry.for_model(s)]
    return combine([asked, *(decide(registry, host=None, model=name, declared=None) for name in sorted(set(known)))])


def check_recipe_terms(job: Distillation, stage: str) -> TermsRecord:
    """Refuse a teacher whose terms forbid training, before anything is sent to it.

    Raises:
        Refused: unknown or forbidding terms, and no override for this teacher.
    """
    return _pass(job, decide_recipe(job.registry, job.recipe), stage)


def check_dataset_terms(job: Distillation, stage: str) -> TermsRecord:
    """Refuse a dataset any of whose rows came from a teacher whose terms forbid training.

    Raises:
        Refused: as above, naming the teacher of the rows.
    """
    return _pass(job, check_dataset(job.run.curated, job.registry).decision, stage)


def _pass(job: Distillation, decision: Decision, stage: str) -> TermsRecord:
    accept = job.accept_terms if job.accept_terms is not None else _accepted_before(job, decision)
    record = gate(decision, accept=accept, stage=stage)
    _remember(job, record)
    return record


def _accepted_before(job: Distillation, decision: Decision) -> str | None:
    """The reason this run carries against `decision`'s objections: same teacher, and none of them new."""
    asked = decision.to_dict()
    for record in reversed(job.run.manifest().get("terms", [])):
        same_teacher = (record["host"], record["model"]) == (asked["host"], asked["model"])
        if record["accepted"] and same_teacher and _objections(asked) <= _objections(record):
            return str(record["accepted"])
    return None


def _objections(decision: dict[str, Any]) -> set[tuple[str, str, str]]:
    """What refuses: a registry entry by its id, whatever pointed to it; a gap in the registry by what it is about."""
    refusing = [e for e in decision["entries"] if e["status"] not in ("allowed", "allowed_with_conditions")]
    return {(e["id"], e["status"], e["why"] if e["id"] == "unknown" else "") for e in refusing}


def _remember(job: Distillation, record: TermsRecord) -> None:
    """Keep the stage's latest record; one that says nothing new leaves the earlier one, with its date, in place."""
    records, new = job.run.manifest().get("terms", []), record.to_dict()
    before = next((entry for entry in records if entry["stage"] == record.stage), None)
    if before is None or {**before, "when": "", "who": ""} != {**new, "when": "", "who": ""}:
        kept = [entry for entry in records if entry["stage"] != record.stage]
        job.run.update_manifest(terms=[*kept, new])
