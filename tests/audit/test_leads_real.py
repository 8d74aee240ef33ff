"""Equality and similarity with the real teacher as suspect, through what `audit run` uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import leads_kit as kit
import pytest
import pytest_asyncio

from spiritsafe.audit import _types as types
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import EqualityConfig, SimilarityConfig, SubjectConfig
from spiritsafe.audit._suspect_weights import WeightsSuspect
from spiritsafe.audit.tests import open_test
from spiritsafe.records import Message, Prompt, Sampling
from spiritsafe.teachers import Weights, load_weights
from spiritsafe.train import prune_layers

pytestmark = pytest.mark.slow

PROMPTS = [f"What does Python's module {name} do?" for name in ("json", "csv", "random", "shutil", "socket")]
SUBJECT = SubjectConfig(name="suspect", access="text")


@pytest.fixture(scope="module")
def teacher(smollm2_gguf: Path) -> Weights:
    return load_weights(smollm2_gguf, dtype="float32", device="cpu")


@pytest_asyncio.fixture
async def suspect(teacher: Weights) -> AsyncIterator[WeightsSuspect]:
    asked = WeightsSuspect(teacher, SUBJECT)
    yield asked
    await asked.aclose()


async def replies(suspect: WeightsSuspect, sampling: Sampling, n: int) -> list[tuple[str, str]]:
    prompts = [Prompt((Message("user", text),)) for text in PROMPTS]
    answers = await asyncio.gather(*(suspect.complete(prompt, sampling, n) for prompt in prompts))
    return [(text, reply.text) for text, answer in zip(PROMPTS, answers, strict=True) for reply in answer]


async def outcome(test: types.Test, suspect: WeightsSuspect) -> types.Outcome:
    items = test.items()
    got = await test.ask(suspect, items)
    return test.judge([kit.record(item, g, test.name) for item, g in zip(items, got, strict=True)])


async def test_the_same_model_passes_and_a_hotter_one_does_not(suspect: WeightsSuspect, tmp_path: Path) -> None:
    rows = await replies(suspect, Sampling(max_tokens=20, temperature=0.5), 6)
    evidence = Evidence({"r": kit.write_replies(tmp_path / "r.jsonl", rows)}, b"seed")
    config = EqualityConfig(
        kind="equality", reference="r", samples=6, max_tokens=20, temperature=0.5, permutations=1999
    )
    same = await outcome(open_test(config, evidence), suspect)
    hotter = await outcome(open_test(config.model_copy(update={"temperature": 1.5}), evidence), suspect)
    assert same.log10_p > -3  # once in a thousand runs a true null is rejected at this level
    assert hotter.log10_p <= -2.5
    assert hotter.effect["value"] > hotter.effect["under_null"]


async def test_the_teacher_itself_leads_its_prunes(suspect: WeightsSuspect, teacher: Weights, tmp_path: Path) -> None:
    greedy = Sampling(max_tokens=16, temperature=0.0)
    inputs = {"t": kit.write_replies(tmp_path / "t.jsonl", await replies(suspect, greedy, 1))}
    for name, dropped in (("a", 8), ("b", 20)):
        model = prune_layers(teacher.model, [i for i in range(30) if not dropped <= i < dropped + 3])
        control = WeightsSuspect(replace(teacher, model=model.requires_grad_(False).eval()), SUBJECT)
        inputs[name] = kit.write_replies(tmp_path / f"{name}.jsonl", await replies(control, greedy, 1))
        await control.aclose()
    config = SimilarityConfig(kind="similarity", reference="t", controls={n: n for n in "ab"}, max_tokens=16)
    found = await outcome(open_test(config, Evidence(inputs, b"")), suspect)
    assert found.hypotheses[0].rank == (0, 2) and 10**found.log10_p == pytest.approx(1 / 3)
    assert found.hypotheses[0].facts["characters"]["suspect"] > 0.95  # greedy, up to ties of batched arithmetic
