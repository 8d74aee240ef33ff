"""What the tests of frozen plans share: folders with a plan and all it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import yaml
from coins_kit import NOW, fresh_coins, ledger_of, pair_line, write_lines

from spiritsafe.keys import Commitment, Leaf, commit_keys, new_keys, open_leaf
from spiritsafe.runs import atomic_write

QUESTION = "Was the model behind the address trained on replies of ours?"


def write_plan(folder: Path, **changes: Any) -> Path:
    """PLAN.yaml with an equality test of reference.jsonl, except as changed; None leaves a key out."""
    plan: dict[str, Any] = {
        "name": "example",
        "question": QUESTION,
        "subject": {"name": "suspect", "access": "text", "model": "m"},
        "tests": [{"kind": "equality", "reference": "reference.jsonl"}],
    } | changes
    file = folder / "PLAN.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in plan.items() if value is not None}))
    return file


def write_reference(folder: Path, name: str = "reference.jsonl") -> Path:
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}, number {j}"} for i in range(4) for j in range(3)]
    return write_lines(folder / name, rows)


async def write_twins(folder: Path, pairs: int = 6, opened: int | None = None) -> list[dict[str, Any]]:
    """pairs.jsonl and the ledger.jsonl that commits to them."""
    lines = [
        pair_line(i, f"first {i}", f"second {i}", coin, account="acct_1" if i % 2 else "acct_2")
        for i, coin in enumerate(fresh_coins(1, pairs))
    ]
    await ledger_of(folder, lines)
    write_lines(folder / "pairs.jsonl", lines[:opened])
    return lines


def write_keys(folder: Path, slots: int = 50) -> tuple[Commitment, dict[str, Leaf]]:
    """KEYS.json, COMMITMENT.json, and epoch.json, coin.json, account.json opened against it."""
    keys = folder / "KEYS.json"
    new_keys(keys, marking={"scheme": "gumbel-dual"}, epoch="2026-11")
    commitment = commit_keys(keys, slots=slots)
    atomic_write(folder / "COMMITMENT.json", commitment.model_dump_json())
    leaves = {
        "epoch": open_leaf(keys, "2026-11", "epoch", commitment=commitment),
        "coin": open_leaf(keys, "2026-11", "coin", commitment=commitment),
        "account": open_leaf(keys, "2026-11", "account", 7, commitment=commitment),
    }
    for name, leaf in leaves.items():
        atomic_write(folder / f"{name}.json", leaf.model_dump_json())
    return commitment, leaves


def unpack(frozen: Any, folder: Path) -> dict[str, Any]:
    """What a case has of a frozen plan: plan.json, reveal.json, inputs/. Returns the document as read back."""
    folder.mkdir()
    atomic_write(folder / "plan.json", frozen.raw)
    opened = {name: [leaf.model_dump(mode="json") for leaf in leaves] for name, leaves in frozen.leaves.items()}
    atomic_write(folder / "reveal.json", orjson.dumps({"leaves": opened}))
    for name, path in frozen.inputs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(path.read_bytes())
    document: dict[str, Any] = orjson.loads(frozen.raw)
    return document


async def write_canaries(folder: Path, number: int = 2) -> None:
    """canaries.jsonl, opened, and the canaries-ledger.jsonl that commits to them."""
    from spiritsafe.ledger import Event
    from spiritsafe.ledger._evidence import canary_commit, open_canary

    opened, events = [], []
    for i in range(number):
        variants = [f"answer {place} of {i}" for place in range(4)]
        known = (f"can_{i}", f"question {i}?", variants, i, i.to_bytes(32, "big"))
        opened.append(open_canary(*known))
        data = {"canary": known[0], "commit": canary_commit(*known), "variants": 4}
        events.append(Event(NOW + i, "canary_committed", f"canary:{known[0]}", data))
    write_lines(folder / "canaries.jsonl", opened)
    (folder / "planted").mkdir()
    (await ledger_of(folder / "planted", events)).rename(folder / "canaries-ledger.jsonl")
