"""YAML of users: every fault in one line that says what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from spiritsafe.audit._plan import AuditPlan
from spiritsafe.config import load_config
from spiritsafe.errors import BadInput

PLAN = """name: a
question: Was it?
subject: {name: student, access: weights}
tests:
  - {kind: twins, pairs: twins.jsonl, ledger: ledger.jsonl}
"""


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("access", "acces", "subject.access is missing; unknown key subject.acces; did you mean access?"),
        ("ledger:", "ledgr:", "unknown key tests.0.twins.ledgr; did you mean ledger?"),
        ("kind: twins", "kind: twin", "tests.0.kind: 'twin' is none of radioactivity, twins, canaries, lineage, equality, "
         "similarity; did you mean twins?"),
        ("kind: twins, ", "", "tests.0.kind is missing"),
        ("tests:", "controls: {a: {pth: x}}\ntests:", "unknown key controls.a.pth; did you mean path?"),
        ("tests:", "controls: {../a: {path: x}}\ntests:", "a name has small letters, digits and dashes"),
        ("name: a", "name: a\nname: b", "not valid YAML: the key name is there twice line 2, column 1"),
        ("access: weights", "access: weights, access: text", "the key access is there twice"),
        ("name: a", "x: " + "[" * 3000, "not valid YAML: nested too deeply"),
        ("tests:", "budget: {usd: 1, price: {input_per_mtk: 1}}\ntests:", "unknown key input_per_mtk; did you mean"),
        ("name: a", "name: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_that_says_what_was_meant(tmp_path: Path, right: str, wrong: str, says: str) -> None:
    assert right in PLAN
    (tmp_path / "PLAN.yaml").write_text(PLAN.replace(right, wrong, 1))
    with pytest.raises(BadInput) as raised:
        load_config(tmp_path / "PLAN.yaml", AuditPlan)
    said = str(raised.value)
    assert says in said and said.startswith(f"{tmp_path}/PLAN.yaml: ") and "\n" not in said and "Tuple" not in said


def test_a_folder_and_an_empty_list_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a folder; give the path of a YAML file"):
        load_config(tmp_path, AuditPlan)
    (tmp_path / "PLAN.yaml").write_text(PLAN.partition("tests")[0] + "tests: []\n")
    with pytest.raises(BadInput, match="at least 1 item"):
        load_config(tmp_path / "PLAN.yaml", AuditPlan)


@pytest.mark.parametrize("how", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")])
def test_marks_of_other_editors_are_read(tmp_path: Path, how: object) -> None:
    assert callable(how)
    (tmp_path / "PLAN.yaml").write_bytes(how(PLAN).encode())
    assert load_config(tmp_path / "PLAN.yaml", AuditPlan).name == "a"


def test_a_merge_key_may_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "PLAN.yaml").write_text(PLAN.replace("subject: {", "subject: {<<: {name: other}, "))
    assert load_config(tmp_path / "PLAN.yaml", AuditPlan).subject.name == "student"
