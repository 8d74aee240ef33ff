"""The recipe: one serialisable config per stage, nothing else."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from spiritsafe.collect import CollectConfig, PromptsConfig
from spiritsafe.config import StrictModel
from spiritsafe.curate import CurateConfig
from spiritsafe.evaluate import EvaluateConfig
from spiritsafe.teachers import TeacherConfig
from spiritsafe.train import StudentConfig, TrainConfig

__all__ = ["Recipe"]


class Recipe(StrictModel):
    """What `spiritsafe distill` reads. Only `teacher` and `prompts` have no default."""

    name: str = Field(default="student", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = 0
    teacher: TeacherConfig
    prompts: PromptsConfig
    collect: CollectConfig = CollectConfig()
    curate: CurateConfig = CurateConfig()
    student: StudentConfig = StudentConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _weights_to_prune(self) -> Recipe:
        if self.student.init == "prune" and self.teacher_weights is None and self.student.source is None:
            raise ValueError(
                "student.init is prune, but there are no weights to prune: give student.source, teacher.weights "
                "(a local copy of the served model) or teacher.path"
            )
        return self

    @property
    def teacher_weights(self) -> str | None:
        """Local weights of the teacher, where the recipe names any."""
        return self.teacher.path or self.teacher.weights

    @property
    def default_run(self) -> Path:
        return Path("runs") / self.name
