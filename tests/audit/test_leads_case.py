"""Lineage, equality and similarity from plan to verified case, on real files and a small model that is really loaded."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import case_kit
import leads_kit as kit
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from spiritsafe.audit._case import build_case
from spiritsafe.audit._freeze import freeze
from spiritsafe.audit._run import run_audit
from spiritsafe.audit._verify import verify_case

PROMPTS = ["w1 w2", "w3 w4 w5"]


def model(folder: Path, seed: int, like: LlamaForCausalLM | None = None) -> LlamaForCausalLM:
    """A small Llama with a tokenizer beside it: fresh, or `like` another with a little noise."""
    torch.manual_seed(seed)
    for file in list(case_kit.small_tokenizer(folder).iterdir()):
        file.replace(folder / file.name)
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    if like is not None:
        made.load_state_dict({n: t + 0.002 * torch.randn_like(t) for n, t in like.state_dict().items()})
    made.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def frozen_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leads")
    teacher = model(folder / "teacher", 1)
    model(folder / "copy", 2, like=teacher)
    model(folder / "stranger", 3)
    model(folder / "base", 4)
    rows = [(prompt, "w9 w8 w7") for prompt in PROMPTS]
    kit.write_replies(folder / "replies.jsonl", rows * 3)
    tests: list[dict[str, Any]] = [
        {"kind": "lineage", "teacher": "teacher", "base": "base"},
        {"kind": "similarity", "reference": "replies.jsonl", "controls": {"c": "replies.jsonl"}, "max_tokens": 4},
        {"kind": "equality", "reference": "replies.jsonl", "samples": 3, "max_tokens": 4, "permutations": 99},
    ]
    plan = {
        "name": "leads",
        "question": "Whose weights are these?",
        "subject": {"name": "suspect", "access": "weights"},
        "tests": tests,
    }
    (folder / "PLAN.yaml").write_text(yaml.safe_dump(plan))
    return folder


@pytest.mark.parametrize("suspect", ["copy", "stranger"])
def test_a_case_of_leads_verifies_without_the_weights(frozen_in: Path, tmp_path: Path, suspect: str) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    for path in frozen_in.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "PLAN.yaml").unlink()
    (folder / "PLAN.yaml").write_text((frozen_in / "PLAN.yaml").read_text())
    frozen = freeze(folder / "PLAN.yaml")
    run = asyncio.run(run_audit(frozen, str(folder / suspect)))
    judged = build_case(frozen, run, tmp_path / "CASE.zip")
    lineage = judged.outcomes[0]
    if suspect == "copy":
        assert judged.finding.to_dict()["class"] == "lead" and lineage.log10_p < -50
        assert lineage.hypotheses[0].statistic > 120
    else:
        assert judged.finding.to_dict()["class"] == "inconclusive" and lineage.log10_p > -2
    for name in ("teacher", "copy", "stranger", "base"):
        (folder / name).unlink()
    found = verify_case(tmp_path / "CASE.zip")
    assert found.checks["recompute"] == "pass" and found.checks["plan"] == "pass"
    said = json.loads(json.dumps(found.to_dict()))["finding"]
    assert said["log10_p"] == pytest.approx(judged.finding.to_dict()["log10_p"])
    second = case_kit.second(tmp_path / "CASE.zip")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "not checked here: transcripts: the questions and numbers of lineage" in second.stdout
