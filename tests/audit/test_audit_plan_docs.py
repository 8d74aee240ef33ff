"""The page on plans and the examples: read with the real loader and frozen, so that neither drifts from the code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from coins_kit import ledger_of, pair_line, write_lines
from freeze_kit import write_keys, write_reference
from pydantic import BaseModel

from spiritsafe.audit._anchors import unanchored, warnings
from spiritsafe.audit._freeze import freeze, load_frozen
from spiritsafe.audit._plan import AuditPlan, SubjectConfig
from spiritsafe.errors import BadInput
from train_kit import save_tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("section", "model"), [("Top level", AuditPlan), ("subject", SubjectConfig)])
def test_every_key_is_documented_and_every_documented_key_exists(section: str, model: type[BaseModel]) -> None:
    page = (ROOT / "docs/audit/plan.md").read_text()
    part = page.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| ", part, re.MULTILINE))
    assert set(rows) == set(model.model_fields)
    for name, said in rows.items():
        field = model.model_fields[name]
        assert (said == "required") == field.is_required(), name
        if isinstance(field.default, int | float):
            assert float(said) == field.default, name


def test_every_command_of_the_pages_exists() -> None:
    from typer.main import get_command

    from spiritsafe.cli._main import app

    tree = get_command(app)
    for page in ("plan.md", "attest.md"):
        text = (ROOT / "docs/audit" / page).read_text()
        for line in re.findall(r"spiritsafe ((?:[a-z]+ )+)(.*)", text):
            node = tree
            for word in line[0].split():
                node = node.commands[word]  # type: ignore[attr-defined]
            known = {option for parameter in node.params for option in parameter.opts}
            given = set(re.findall(r"(?<= )--[a-z-]+", f" {line[1].partition('`')[0].partition('#')[0]}"))
            assert given <= known, (page, line)


async def test_the_twins_example_freezes(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples/audit/twins.yaml", tmp_path)
    pairs = [pair_line(i, f"first {i}", f"second {i}", i % 2, account="acct_7") for i in range(8)]
    await ledger_of(tmp_path, [*pairs, pair_line(9, "a", "b", 0, account="acct_8")])
    write_lines(tmp_path / "pairs.jsonl", pairs)
    write_reference(tmp_path, "sampled.jsonl")
    frozen = freeze(tmp_path / "twins.yaml")
    assert frozen.document["commitments"]["twins"]["committed"] == 8
    assert list(frozen.document["nulls"]) == ["twins", "same-endpoint"]
    assert frozen.evidence("twins").sequential
    assert load_frozen(tmp_path / "twins.yaml") == frozen


@pytest.mark.slow  # compiles the detector's kernels
def test_the_marks_example_freezes(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples/audit/marks.yaml", tmp_path)
    commitment, _ = write_keys(tmp_path)
    (tmp_path / "account.json").rename(tmp_path / "slots.json")
    save_tiny(tmp_path / "teacher")
    save_tiny(tmp_path / "base", seed=1)
    write_lines(tmp_path / "released.jsonl", [{"prompt": "say", "completion": "the cat", "created": "2199-01-01"}])
    frozen = freeze(tmp_path / "marks.yaml")
    assert frozen.families == {"radioactivity": commitment.committed["epoch"]}
    assert [leaf.purpose for leaf in frozen.evidence("radioactivity").leaves] == ["epoch", "coin", "account"]
    assert warnings(frozen) == []
    assert [line.partition(":")[0] for line in unanchored(frozen)] == ["plan", "radioactivity"]
    assert frozen.control("base").path == str(tmp_path / "base")
    assert load_frozen(tmp_path / "marks.yaml") == frozen


def test_account_keys_alone_pay_for_every_slot(tmp_path: Path) -> None:
    commitment, _ = write_keys(tmp_path, slots=50)
    save_tiny(tmp_path / "teacher")
    save_tiny(tmp_path / "base", seed=1)
    write_lines(tmp_path / "released.jsonl", [{"prompt": "say", "completion": "the cat"}])
    text = (ROOT / "examples/audit/marks.yaml").read_text().replace("slots.json", "account.json")
    with pytest.raises(BadInput, match="coin key"):  # whose contexts are the account's, the coin says
        freeze(_written(tmp_path, text.replace("[epoch.json, coin.json]", "[]")))
    text = text.replace("[epoch.json, coin.json]", "[coin.json]")
    assert freeze(_written(tmp_path, text)).families == {"radioactivity": commitment.committed["account"]}


def _written(folder: Path, text: str) -> Path:
    (folder / "marks.yaml").write_text(text)
    return folder / "marks.yaml"
