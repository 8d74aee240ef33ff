"""User files: what they may add, tighten and replace, and how their mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from spiritsafe.errors import BadInput
from spiritsafe.terms import Registry, decide

ENTRY = """
  - id: {id}
    kind: {kind}
    name: A test entry
    version: "2026-01-01"
    status: {status}
    source: https://example.com/terms
    {more}
"""


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SPIRITSAFE_TERMS", raising=False)


def write(path: Path, *entries: dict[str, str]) -> Path:
    filled = ({"kind": "licence", "status": "allowed", "more": ""} | entry for entry in entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("entries:" + "".join(ENTRY.format(**e) for e in filled), encoding="utf-8")
    return path


def test_added_entries_are_found_by_model_and_host(tmp_path: Path) -> None:
    path = write(
        tmp_path / "terms.yaml",
        {"id": "acme-terms", "kind": "provider", "more": 'hosts: [llm.acme.example]\n    models: ["acme-*"]'},
    )
    decision = decide(Registry.load(path), host="https://eu.llm.acme.example/v1", model="Acme/acme-7b", declared=None)
    assert decision.status == "allowed"
    assert f"added by {path}" in decision.reason


def test_every_place_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "config" / "spiritsafe" / "terms.yaml", {"id": "from-config"})
    monkeypatch.setenv("SPIRITSAFE_TERMS", str(write(tmp_path / "env.yaml", {"id": "from-env"})))
    registry = Registry.load(write(tmp_path / "extra.yaml", {"id": "from-extra"}))
    assert [registry.get(i).id for i in ("from-config", "from-env", "from-extra", "mit")]


def test_an_added_pattern_does_not_hide_a_shipped_one(tmp_path: Path) -> None:
    path = write(tmp_path / "t.yaml", {"id": "mine", "more": 'models: ["gpt-4o-mine", "gpt-4o-mine-7b"]'})
    decision = decide(Registry.load(path), host="localhost", model="gpt-4o-mine-7b", declared="mine")
    assert decision.status == "forbidden_competing"


def test_an_added_alias_does_not_stand_in_for_a_shipped_id(tmp_path: Path) -> None:
    path = write(tmp_path / "t.yaml", {"id": "mine", "more": "aliases: [llama-2]"})
    assert decide(Registry.load(path), host=None, model="x", declared="llama-2").status == "forbidden"


def test_same_id_may_tighten_and_keeps_what_the_entry_covered(tmp_path: Path) -> None:
    path = write(tmp_path / "t.yaml", {"id": "smollm2", "status": "forbidden"})
    decision = decide(Registry.load(path), host=None, model="smollm2-135m", declared=None)
    assert decision.status == "forbidden"
    assert "tightens the entry, which said allowed" in decision.reason


def test_loosening_needs_replaces_and_shows(tmp_path: Path) -> None:
    loose = {"id": "openai", "kind": "provider", "more": "hosts: [openai.com]"}
    with pytest.raises(
        BadInput, match=r"openai is forbidden_competing in the registry and allowed here; add `replaces: true`"
    ):
        Registry.load(write(tmp_path / "loose.yaml", loose))
    loose["more"] += "\n    replaces: true\n    models: ['gpt-*', 'gpt-4*']"
    registry = Registry.load(write(tmp_path / "replaced.yaml", loose))
    decision = decide(registry, host="api.openai.com", model="gpt-4o", declared=None)
    assert decision.status == "allowed"
    assert "replaces the entry, which said forbidden_competing" in decision.reason
    assert decision.to_dict()["entries"][0]["origin"]


def test_replaced_entry_still_stands_before_its_shorter_neighbours(tmp_path: Path) -> None:
    mine = {"id": "llama-3.1", "more": 'models: ["llama-3.1"]\n    replaces: true'}
    decision = decide(Registry.load(write(tmp_path / "t.yaml", mine)), host=None, model="llama-3.1-8b", declared=None)
    assert decision.status == "allowed"


def test_a_second_file_cannot_loosen_the_first_unsaid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIRITSAFE_TERMS", str(write(tmp_path / "a.yaml", {"id": "mit", "status": "forbidden"})))
    with pytest.raises(BadInput, match="mit is forbidden in the registry and allowed here"):
        Registry.load(write(tmp_path / "b.yaml", {"id": "mit"}))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"id": "x", "status": "perhaps"}, "status"),
        ({"id": "Bad Id"}, "id"),
        ({"id": "unknown"}, "choose another"),
        ({"id": "x", "more": "hots: [a.b]"}, "unknown key entries.0.hots"),
        ({"id": "x", "more": "hosts: [a.example]"}, "hosts belong to a provider"),
        ({"id": "x", "kind": "provider", "more": 'hosts: ["*.com"]'}, "write a domain"),
        ({"id": "x", "more": 'models: ["*"]'}, "name at least one word"),
        ({"id": "x", "status": "allowed_with_conditions"}, "at least one condition"),
        ({"id": "x", "more": "conditions: [{action: non_commercial}]"}, "its status is allowed_with_conditions"),
        ({"id": "x", "more": "conditions: [{action: dance}]"}, "action"),
        ({"id": "x", "more": "replaces: true"}, "has no entry 'x'"),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(tmp_path: Path, entry: dict[str, str], says: str) -> None:
    path = write(tmp_path / "t.yaml", entry)
    with pytest.raises(BadInput) as caught:
        Registry.load(path)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        Registry.load(tmp_path / "none.yaml")


def test_get_names_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"no entry 'apache-2.1' \(did you mean apache-2\.0\?\)"):
        Registry.load().get("apache-2.1")
    assert Registry.load().get("LLAMA3.1").id == "llama-3.1"
