from __future__ import annotations

import subprocess
import sys

import spiritsafe.evaluate
import spiritsafe.report


def test_the_exported_names() -> None:
    assert spiritsafe.evaluate.__all__ == ["EvaluateConfig", "evaluate"]
    assert spiritsafe.report.__all__ == ["GUARD_ROWS", "GuardReport", "render_case", "render_guard", "render_run"]
    assert callable(spiritsafe.evaluate.evaluate)


def test_reading_a_recipe_or_a_run_needs_no_torch() -> None:
    code = "import sys, spiritsafe.evaluate, spiritsafe.report; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
