"""The tutorial's files are what the commands read, and what the pages promise of files and limits is so."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from spiritsafe.audit import _suspect_api, _suspect_calls
from spiritsafe.audit._plan import AuditPlan
from spiritsafe.audit._run_folder import RunFolder
from spiritsafe.distill import Recipe
from spiritsafe.serve._config import GuardConfig

PAGES = Path(__file__).parents[2] / "docs" / "audit"


def test_the_files_of_the_tutorial_are_read() -> None:
    guard, recipe, plan = re.findall(r"```yaml\n(.*?)```", (PAGES / "README.md").read_text(), re.DOTALL)
    assert GuardConfig.model_validate(yaml.safe_load(guard)).tiers["default"].twin_share == 1.0
    assert Recipe.model_validate(yaml.safe_load(recipe)).collect.seed is None
    assert AuditPlan.model_validate(yaml.safe_load(plan)).tests[0].kind == "twins"


def test_the_page_on_running_names_every_file_and_the_right_limits() -> None:
    page = (PAGES / "run.md").read_text()
    folder = RunFolder(Path("PLAN.run"))
    for path in (folder.transcript, folder.attempts, folder.subject, folder.requests, folder.probes):
        assert f"`{path.name}`" in page
    assert _suspect_calls._TRIES == 6 and "up to six times" in page
    assert _suspect_api.ApiSuspect.concurrency == 32 and "up to 32" in page


def test_links_lead_somewhere() -> None:
    for page in ("README.md", "run.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (PAGES / page).read_text()):
            assert target.startswith("http") or (PAGES / target).exists(), f"{page}: {target}"
