"""The pages on evidence and the ladder say what is so, and their snippets run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import accounts_kit as kit
from spiritsafe.ledger._evidence import twin_commit
from spiritsafe.serve import _config
from spiritsafe.serve._config import STEPS
from spiritsafe.serve._webhooks import signature

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / "guard" / f"{name}.md").read_text() for name in ("evidence", "ladder")}


def snippet(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.S)


@pytest.mark.parametrize("page", PAGES)
def test_the_yaml_is_a_guards(page: str) -> None:
    for block in snippet(page, "yaml"):
        given = yaml.safe_load(block)
        made = kit.config(**given)
        assert given.keys() <= set(type(made).model_fields)


def test_a_stranger_computes_the_commitment_with_the_code_shown() -> None:
    names: dict[str, Any] = {}
    (code,) = snippet("evidence", "python")
    exec(code, names)
    pair = {"salt": "0f" * 32, "coin": 1, "first": {"a": [1.5, "é"]}, "second": {"b": None}, "request": {"c": {"d": 1}}}
    values = (pair[name] for name in ("first", "second", "request"))
    assert names["twin_commit"](pair) == twin_commit(bytes.fromhex("0f" * 32), 1, *values)


def test_a_receiver_tells_genuine_messages_with_the_code_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    (code,) = snippet("ladder", "python")
    exec(code, names)
    genuine, body, now = names["genuine"], b'{"id": "evt_1"}', 1_800_000_000
    header = signature(b"secret", now, body)
    monkeypatch.setattr("time.time", lambda: now + 200.0)
    assert genuine(b"secret", header, body)
    assert not genuine(b"other", header, body)
    assert not genuine(b"secret", header, body + b" ")
    assert not genuine(b"secret", header.replace(f"t={now}", f"t={now + 1}"), body)
    monkeypatch.setattr("time.time", lambda: now + 301.0)
    assert not genuine(b"secret", header, body)


def test_every_step_and_every_event_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGES["ladder"], re.M)
    assert rows == [*STEPS, *get_args(_config.Happening)]


def test_the_message_shown_has_the_fields_it_has() -> None:
    (block,) = snippet("ladder", "json")
    message = json.loads(block)
    assert set(message) == {"id", "event", "created", "data"}
    assert set(message["data"]) == {"subject", "step", "shadow", "reason", "decided_by"}


def test_a_stranger_needs_one_file_and_no_packages() -> None:
    """-I -S: nothing of this project and no site-packages on the path."""
    check = (
        "import sys; source = open(sys.argv[1]).read(); names = {'__name__': 'evidence'}; exec(source, names);"
        "opened = names['open_canary']('c', 'q', ['a', 'b'], 1, bytes(32));"
        "commit = names['canary_commit']('c', 'q', ['a', 'b'], 1, bytes(32));"
        "assert names['verify_canary'](opened, commit) and not names['verify_canary'](opened, '0' * 64)"
    )
    file = ROOT / "src" / "spiritsafe" / "ledger" / "_evidence.py"
    subprocess.run([sys.executable, "-I", "-S", "-c", check, str(file)], check=True)
