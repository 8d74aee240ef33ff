"""What a recipe may say about evaluation."""

from __future__ import annotations

from pydantic import Field, field_validator

from spiritsafe.config import StrictModel

__all__ = ["EvaluateConfig"]


class EvaluateConfig(StrictModel):
    """How to measure a student.

    holdout: share of the prompts that never train (the split is made when collecting).
    bootstrap: resamples of prompts behind every 95 % interval.
    max_tokens: held-out completion tokens to score; more are left out, whole exchanges at a time. None: all.
    screen_tokens: held-out completion tokens on which untrained prunes compete; the best is then scored on all.
    samples: held-out prompts answered side by side.
    speed_prompts, speed_tokens: how much teacher and student generate to be timed; 0 prompts: speed is not measured.
    speed_repeats: rounds of teacher, student, student, teacher; the fastest burst of each counts.
    usd_per_hour: what the machine that serves the student costs; turns its speed into dollars per million tokens.
    batch_tokens: prompt and completion tokens in one forward pass, padding included.
    """

    holdout: float = Field(0.1, gt=0, lt=1)
    tasks: list[str] = Field(default_factory=list)
    bootstrap: int = Field(2000, ge=100, le=100_000)
    seed: int = 0
    max_tokens: int | None = Field(None, ge=1)
    screen_tokens: int = Field(200, ge=1)
    samples: int = Field(8, ge=0, le=100)
    speed_prompts: int = Field(8, ge=0)
    speed_tokens: int = Field(16, ge=2)
    speed_repeats: int = Field(2, ge=1)
    usd_per_hour: float | None = Field(None, gt=0)
    batch_tokens: int = Field(2048, ge=1)

    @field_validator("tasks")
    @classmethod
    def _no_tasks_yet(cls, tasks: list[str]) -> list[str]:
        if tasks:
            raise ValueError("no benchmark tasks are available in this version; leave tasks: [] out")
        return tasks
