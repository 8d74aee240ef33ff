"""The gate, its records, and what conditions make of a student."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spiritsafe.errors import BadInput, Refused
from spiritsafe.exchanges import write_exchanges
from spiritsafe.records import Exchange, Message, Prompt, Reply, Sampling, TeacherInfo, Usage
from spiritsafe.terms import Registry, check_dataset, combine, conditions_to_actions, decide, gate
from spiritsafe.terms._registry import shipped

REGISTRY: Registry = shipped()


def exchange(number: int, model: str, host: str | None, terms_id: str, terms_version: str) -> Exchange:
    prompt = Prompt((Message("user", f"question {number}"),))
    return Exchange(
        request_hash=f"{number:064x}",
        sample=0,
        prompt=prompt,
        reply=Reply("answer", "stop"),
        sampling=Sampling(),
        usage=Usage(3, 1),
        usd=0.0,
        teacher=TeacherInfo(model, host=host),
        terms_id=terms_id,
        terms_version=terms_version,
    )


def test_refusal_says_why_and_how_to_go_on() -> None:
    decision = decide(REGISTRY, host="api.openai.com", model="gpt-4o", declared="apache-2.0")
    with pytest.raises(Refused) as caught:
        gate(decision, accept=None, stage="collect")
    assert caught.value.exit_code == 3
    for part in ("collect refused", "OpenAI Services Agreement", '--accept-terms "reason"', "not legal advice"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("blank", ["", "  \n"])
@pytest.mark.parametrize("model", ["gpt-4o", "smollm2"])
def test_an_override_without_a_reason_is_none(blank: str, model: str) -> None:
    with pytest.raises(Refused, match="needs a reason"):
        gate(decide(REGISTRY, host=None, model=model, declared=None), accept=blank, stage="train")


def test_override_is_recorded_for_json() -> None:
    decision = decide(REGISTRY, host="localhost", model="mystery", declared=None)
    record = gate(decision, accept=" written permission of 2026-10-01 ", stage="train")
    stored = json.loads(json.dumps(record.to_dict()))
    assert stored["accepted"] == "written permission of 2026-10-01"
    assert (stored["stage"], stored["status"], stored["disclaimer"]) == ("train", "unknown", "not legal advice")
    assert stored["who"] and stored["when"].endswith("+00:00")


def test_a_reason_that_was_not_needed_is_no_override() -> None:
    record = gate(decide(REGISTRY, host=None, model="smollm2", declared=None), accept="just in case", stage="export")
    assert record.accepted is None
    assert (record.terms_id, record.terms_version) == ("smollm2", "2.0")


def test_llama_student_is_renamed_and_carries_its_notice() -> None:
    decision = decide(REGISTRY, host=None, model="meta-llama/Llama-3.1-8B", declared=None)
    actions = conditions_to_actions(decision, "stdlib-explainer")
    assert (actions.student_name, actions.renamed) == ("Llama-stdlib-explainer", True)
    assert "Llama 3.1 is licensed under the Llama 3.1 Community License" in actions.files["NOTICE"]
    assert actions.badges == ("Built with Llama",)
    assert actions.licence == "llama3.1"
    assert "not legal advice" in actions.files["TERMS.md"]
    assert conditions_to_actions(decision, "llama-mini").student_name == "Llama-mini"
    assert not conditions_to_actions(decision, "Llama-mini").renamed


def test_gemma_terms_flow_down() -> None:
    actions = conditions_to_actions(decide(REGISTRY, host=None, model="gemma-3-270m", declared=None), "mini")
    assert actions.student_name == "mini"
    assert any("Model Derivative" in text for text in actions.flow_down)
    assert "ai.google.dev/gemma/terms" in actions.files["NOTICE"]


def test_nothing_is_asked_of_a_forbidden_provider_but_nothing_is_licensed_either() -> None:
    actions = conditions_to_actions(decide(REGISTRY, host="api.openai.com", model="gpt-4o", declared=None), "mini")
    assert (actions.student_name, actions.files, actions.licence) == ("mini", {}, None)


def test_two_teachers_two_notices() -> None:
    parts = [decide(REGISTRY, host=None, model=m, declared=None) for m in ("llama-3.2-1b", "gemma-2-2b")]
    actions = conditions_to_actions(combine(parts), "mini")
    assert "Llama 3.2" in actions.files["NOTICE"] and "Gemma" in actions.files["NOTICE"]
    assert actions.student_name == "Llama-mini"
    assert actions.licence is None


def test_names_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(
        "entries: [{id: alpaca, kind: licence, name: Alpaca, version: '1', source: 'https://a.example', "
        "status: allowed_with_conditions, conditions: [{action: name_prefix, value: Alpaca}]}]"
    )
    decision = decide(Registry.load(path), host=None, model="llama-3.1-8b", declared="alpaca")
    with pytest.raises(Refused, match="no name satisfies every licence"):
        conditions_to_actions(decision, "mini")


def test_dataset_is_traced_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "exchanges.parquet"
    rows = [exchange(n, "smollm2-135m", "127.0.0.1", "smollm2", "2.0") for n in range(3)]
    rows += [exchange(9, "gpt-4o", "api.openai.com", "openai", "2025-05-31")]
    write_exchanges(path, rows)
    checked = check_dataset(path, REGISTRY)
    assert {(g.teacher, g.host, g.terms, g.rows, g.decision.status) for g in checked.groups} == {
        ("smollm2-135m", "127.0.0.1", ("smollm2@2.0",), 3, "allowed"),
        ("gpt-4o", "api.openai.com", ("openai@2025-05-31",), 1, "forbidden_competing"),
    }
    assert (checked.rows, checked.permits) == (4, False)
    assert "3 rows of smollm2-135m" in checked.render()
    assert json.loads(json.dumps(checked.to_dict()))["teachers"][0]["rows"] in (1, 3)
    with pytest.raises(Refused, match="OpenAI"):
        gate(check_dataset(path, REGISTRY).decision, accept=None, stage="train")
    assert (
        gate(check_dataset(path, REGISTRY).decision, accept="our lawyers agreed", stage="train").accepted
        == "our lawyers agreed"
    )


def test_a_registry_that_turned_stricter_counts(tmp_path: Path) -> None:
    path = tmp_path / "exchanges.parquet"
    write_exchanges(path, [exchange(0, "our-model", "vllm", "mit", "mit")])
    assert gate(check_dataset(path, REGISTRY).decision, accept=None, stage="train").status == "allowed"
    user = tmp_path / "t.yaml"
    user.write_text(
        "entries: [{id: mit, kind: licence, name: MIT, version: '2', source: 'https://a.example', status: forbidden}]"
    )
    checked = check_dataset(path, Registry.load(user))
    assert checked.status == "forbidden"
    assert checked.groups[0].changes == ("collected under mit@mit; the registry now has version 2",)


def test_what_was_recorded_strictly_stays_strict(tmp_path: Path) -> None:
    """Rows collected under a declaration that no registry knows any more are not read as allowed."""
    path = tmp_path / "exchanges.parquet"
    rows = [
        exchange(0, "smollm2-135m", None, "smollm2+acme-contract", "2.0+1"),
        exchange(1, "smollm2", None, "llama-2", ""),
    ]
    write_exchanges(path, rows[:1])
    assert check_dataset(path, REGISTRY).status == "unknown"
    write_exchanges(path, rows)
    assert check_dataset(path, REGISTRY).status == "forbidden"


def test_rows_collected_under_an_override_ask_for_it_again(tmp_path: Path) -> None:
    path = tmp_path / "exchanges.parquet"
    write_exchanges(path, [replace(exchange(0, "mystery", "localhost", "unknown", ""))])
    with pytest.raises(Refused, match="export refused"):
        gate(check_dataset(path, REGISTRY).decision, accept=None, stage="export")


def test_unusable_datasets(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        check_dataset(tmp_path / "none.parquet", REGISTRY)
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(BadInput, match="not a readable Parquet"):
        check_dataset(tmp_path / "text.parquet", REGISTRY)
    write_exchanges(tmp_path / "empty.parquet", [])
    with pytest.raises(BadInput, match="no rows"):
        check_dataset(tmp_path / "empty.parquet", REGISTRY)
