"""docs/guard/ledger.md: its commands run, and its check agrees with ours."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ledger_kit import START, row
from spiritsafe.ledger import Event, Ledger
from spiritsafe.serve._secrets import GuardSecrets
from spiritsafe.state import Database

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guard/ledger.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def after_the_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a guard and its ledger, in which the page's shell blocks have run."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "guard.yaml").write_text(
        "upstreams: [{name: local, base_url: 'http://127.0.0.1:9/v1', models: [m],"
        " price: {input_per_mtok: 1, output_per_mtok: 1}}]\n"
    )

    async def fill() -> None:
        async with await Database.open(f"sqlite:///{folder / 'guard.db'}") as db:
            signer = GuardSecrets.load(folder / "guard.secrets").signer
            ledger = await Ledger.open(db, signer=signer, commit_ms=1)
            for n in range(20):
                ledger.append(row(n, features={"tiny": 1e-07, "ü": [1.5, None]}) if n % 6 else Event(START, "e", "s"))
            await ledger.aclose()

    asyncio.run(fill())
    script = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the chain is whole") == 3
    return folder


def blocks() -> list[str]:
    found: list[str] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    return found


def test_the_check_for_strangers_agrees_and_finds_what_is_wrong(after_the_page: Path, tmp_path: Path) -> None:
    scope: dict[str, Any] = {}
    exec(blocks()[-1], scope)
    checkpoint = (after_the_page / "checkpoint.txt").read_text().split()
    last, key = checkpoint[1], checkpoint[3]
    seq, chain_hash, signed = scope["check"](after_the_page / "all.jsonl", key)
    assert f"{seq}:{chain_hash}" == last and signed == seq == 20
    lines = [json.loads(line) for line in (after_the_page / "all.jsonl").read_text().splitlines()]
    for change in (lambda: lines.pop(4), lambda: lines[7].update(n=5), lambda: lines[8].update(end_user="x")):
        saved = [dict(line) for line in lines]
        change()
        (tmp_path / "changed.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
        with pytest.raises(AssertionError):
            scope["check"](tmp_path / "changed.jsonl", key)
        lines[:] = saved
    with pytest.raises(AssertionError):
        scope["check"](after_the_page / "all.jsonl", "00" * 32)


def test_the_other_snippets_run(
    after_the_page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(after_the_page)
    erase, spent, _ = blocks()
    exec(spent, {"__name__": "spent"})
    assert "acct_1" in capsys.readouterr().out
    exec(erase, {"__name__": "erase"})
    assert capsys.readouterr().out == "7 rows\n"
    exec(erase, {"__name__": "erase"})
    assert capsys.readouterr().out == "0 rows\n"


def test_the_page_names_every_exported_field() -> None:
    from spiritsafe.ledger._read import COLUMNS

    for name in COLUMNS:
        assert f"`{name}`" in PAGE
