"""The real 135M model audited by twin replies: as it is, and after it was trained on what was released."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from coins_kit import ledger_of, pair_line, write_lines

from served import one_thread
from spiritsafe.audit._case import build_case
from spiritsafe.audit._freeze import freeze
from spiritsafe.audit._plan import SubjectConfig
from spiritsafe.audit._run import run_audit
from spiritsafe.audit._suspect_weights import WeightsSuspect
from spiritsafe.audit._transcript import read_transcript
from spiritsafe.records import Message, Prompt, Sampling
from spiritsafe.tokens import prompt_ids

__all__ = ["one_thread"]

PAIRS = 12


async def write_pairs(suspect: WeightsSuspect, folder: Path) -> list[dict[str, Any]]:
    """Two replies to each of a few questions; a coin says which went out."""
    coins = random.Random(5)
    prompts = [Prompt((Message("user", f"Tell me one thing about the number {n}."),)) for n in range(3, 3 + PAIRS)]
    sampling = Sampling(max_tokens=12, temperature=1.0, seed=1)
    both = await asyncio.gather(*(suspect.complete(prompt, sampling, 2) for prompt in prompts))
    lines = [
        pair_line(i, first.text, second.text, coins.randrange(2), request={"messages": [{"role": "user", "content": p.messages[0].content}]})
        for i, (p, (first, second)) in enumerate(zip(prompts, both, strict=True))
    ]  # fmt: skip
    await ledger_of(folder, lines)
    write_lines(folder / "pairs.jsonl", lines)
    return lines


def teach(weights: Any, lines: Sequence[dict[str, Any]], epochs: int) -> None:
    """Fine-tune the last layers on the released replies, in place."""
    model, tokenizer = weights.model, weights.tokenizer
    rows = []
    for line in lines:
        before = prompt_ids(tokenizer, (Message("user", line["request"]["messages"][0]["content"]),))
        text = line[("first", "second")[line["coin"]]]["choices"][0]["message"]["content"]
        rows.append((before, tokenizer.encode(text, add_special_tokens=False)))
    taught = [p for layer in model.model.layers[-6:] for p in layer.parameters()]
    for parameter in taught:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(taught, lr=3e-4)
    for _ in range(epochs):
        for before, after in rows:
            logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
            torch.nn.functional.cross_entropy(logits, torch.tensor(after)).backward()
            optimizer.step()
            optimizer.zero_grad()
    for parameter in taught:
        parameter.requires_grad_(False)


@pytest.mark.slow
def test_the_real_model_is_inconclusive_and_one_taught_what_was_released_is_not(
    tmp_path: Path, smollm2_gguf: Path, one_thread: None
) -> None:
    suspect = WeightsSuspect(str(smollm2_gguf), SubjectConfig(name="smollm2", access="weights"))
    lines = asyncio.run(write_pairs(suspect, tmp_path))
    plan = {
        "name": "numbers",
        "question": "Was this model trained on the replies that were released?",
        "subject": {"name": "smollm2", "access": "weights"},
        "alpha": 0.01,
        "tests": [{"kind": "twins", "pairs": "../pairs.jsonl", "ledger": "../ledger.jsonl"}],
    }
    files = {}
    for name in ("innocent", "taught"):
        (tmp_path / name).mkdir()
        files[name] = tmp_path / name / "PLAN.yaml"
        files[name].write_text(yaml.safe_dump(plan))

    freeze(files["innocent"])
    command = [
        sys.executable,
        "-m",
        "spiritsafe",
        "audit",
        "run",
        str(files["innocent"]),
        "--suspect",
        str(smollm2_gguf),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["finding"]["class"] == "inconclusive" and said["attempts"] == 1
    assert Path(said["case"]).name == "PLAN.case.zip" and Path(said["case"]).is_file()

    teach(suspect.weights, lines, epochs=4)
    suspect.info = replace(suspect.info, revision="taught")
    frozen = freeze(files["taught"])

    async def audit() -> Any:
        folder = await run_audit(frozen, str(tmp_path / "student"), suspect=suspect)
        await suspect.aclose()
        return folder

    folder = asyncio.run(audit())
    judged = build_case(frozen, folder, tmp_path / "taught.zip")
    (outcome,) = judged.outcomes
    assert judged.finding.grade == "lead"  # nobody outside vouches for this plan: never proof by itself
    assert outcome.effect["value"] > 0.9 and outcome.log10_p < -2
    records = read_transcript(folder.transcript, frozen.hash)
    assert len(records) == PAIRS and all(record.got is not None for record in records)
