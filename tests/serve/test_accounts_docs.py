"""docs/guard/accounts.md: its commands run, and its tables name what there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from spiritsafe.config import load_config
from spiritsafe.serve._access import access
from spiritsafe.serve._admin_api import admin_api
from spiritsafe.serve._admin_bodies import Issue, LadderStep, ListAccounts, NewAccount, Rotate, Suspend
from spiritsafe.serve._api_keys import SCOPES
from spiritsafe.serve._config import GuardConfig

PAGE = (Path(__file__).parents[2] / "docs" / "guard" / "accounts.md").read_text()


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path: Path) -> None:
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    (tmp_path / "guard.yaml").write_text(config)
    load_config(tmp_path / "guard.yaml", GuardConfig)
    script = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script + "\nspiritsafe accounts list --json > LIST.json"],
        cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ada, ops = sorted(json.loads((tmp_path / "LIST.json").read_text())["accounts"], key=lambda a: str(a["name"]))
    assert (ada["name"], ada["tier"], ada["limits"], ada["status"]) == (
        "Ada Ltd",
        "gold",
        {"concurrency": None},
        "active",
    )
    assert ops["name"] == "ops"


def test_the_table_of_paths_is_the_apis() -> None:
    told = set()
    for methods, path in re.findall(r"^\| `((?:GET|POST|PATCH)(?:`, `PATCH|`, `POST)?) /admin(/\S*)` \|", PAGE, re.M):
        place = path.replace("KEY_ID", "{key_id}").replace("/ID", "/{ref}").replace("SUBJECT", "{subject}")
        told |= {(method, place) for method in methods.split("`, `")}
    routes = admin_api(SimpleNamespace(accounts=None))._router.routes  # type: ignore[attr-defined, arg-type]
    there = {(method, route.path) for route in routes for method in route.methods - {"HEAD"}}
    assert told == there


def test_the_fields_and_scopes_are_those_there_are() -> None:
    for path, model in (
        ("GET /admin/accounts", ListAccounts), ("POST /admin/accounts", NewAccount), ("POST /admin/accounts/ID/suspend", Suspend),
        ("GET`, `POST /admin/accounts/ID/keys", Issue), ("POST /admin/keys/KEY_ID/rotate", Rotate),
        ("GET`, `POST /admin/ladder", LadderStep),
    ):  # fmt: skip
        (row,) = re.findall(rf"^\| `{re.escape(path)}` \| (.*) \|$", PAGE, re.M)
        assert set(re.findall(r"`([a-z_]+)`", row)) - {"next"} == set(model.model_fields), path
    scopes = re.search(r"\| scope \| may \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    assert scopes is not None and set(re.findall(r"^\| `(\w+)`", scopes[1], re.M)) == set(SCOPES)
    assert access.__doc__ is not None and "`account_suspended`" in PAGE and "`terms_not_accepted`" in PAGE
