"""Lineage on the real teacher: a pruned and trained student of it, a stranger of the same shape, and siblings."""

from __future__ import annotations

import copy
import inspect
import json
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import leads_kit as kit
import pytest
import torch
import weights_kit as wk

from spiritsafe.audit import _types as types
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import LineageConfig
from spiritsafe.audit.tests import open_test
from spiritsafe.teachers import Weights, load_weights
from spiritsafe.train import prune_layers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def teacher(smollm2_gguf: Path) -> Weights:
    return load_weights(smollm2_gguf, dtype="float32", device="cpu")


def train(model: Any, tokenizer: Any, module: ModuleType, steps: int, lr: float) -> Any:
    """A few steps on the source of a module; the embedding, most of the parameters, stays as it is."""
    ids = torch.tensor(tokenizer.encode(inspect.getsource(module))[: 32 * steps + 1])
    model.requires_grad_(True).train()
    model.get_input_embeddings().requires_grad_(False)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for at in range(steps):
        batch = ids[None, 32 * at : 32 * (at + 1)]
        model(batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval().requires_grad_(False)


async def found(test: types.Test, model: Any) -> types.Outcome:
    (got,) = await test.ask(wk.suspect(model.state_dict()), test.items())
    return test.judge([kit.record(test.items()[0], got, test.name)])


async def test_a_pruned_and_trained_student_is_kin_and_a_stranger_is_not(teacher: Weights, smollm2_gguf: Path) -> None:
    test = open_test(LineageConfig(kind="lineage", teacher="w"), Evidence({"w": smollm2_gguf}, b""))
    student = train(prune_layers(teacher.model, range(0, 30, 5)), teacher.tokenizer, textwrap, 5, 1e-3)
    stranger = type(student)(student.config)  # the same shape, from an initialisation of its own
    stranger = train(stranger, teacher.tokenizer, textwrap, 5, 1e-3)

    kin = await found(test, student)
    units, coordinates = kin.hypotheses
    assert units.statistic >= 6 * 1536 * 0.99 and units.log10_p < -10_000
    assert coordinates.statistic == 576 and coordinates.log10_p < -1_000
    assert kin.effect["value"] > 0.19 and kin.most == "lead"

    innocent = await found(test, stranger)
    assert innocent.log10_p == 0.0
    assert innocent.hypotheses[0].statistic < 60 and innocent.hypotheses[1].statistic < 10


async def test_fine_tunes_of_one_base_are_told_apart_by_the_teachers_own_change(
    teacher: Weights, smollm2_gguf: Path, tmp_path: Path
) -> None:
    """The declared base is the real model; the teacher, its derivative and a sibling are fine-tunes. Four layers."""
    base = prune_layers(teacher.model, range(0, 30, 8))
    tokenizer = teacher.tokenizer

    def save(name: str, model: Any) -> Path:
        mlp = {n: t for n, t in model.state_dict().items() if ".mlp." in n or "embed_tokens" in n}
        return wk.save(tmp_path / name, mlp)

    tuned = train(copy.deepcopy(base), tokenizer, textwrap, 6, 1e-4)
    derived = train(copy.deepcopy(tuned), tokenizer, json.decoder, 6, 1e-4)
    sibling = train(copy.deepcopy(base), tokenizer, json.decoder, 6, 1e-4)
    again = train(copy.deepcopy(base), tokenizer, textwrap, 4, 1e-4)
    paths = {"t": save("t", tuned), "b": save("b", base), "s": save("s", sibling)}
    config = LineageConfig(kind="lineage", teacher="t", base="b", siblings={"s": "s"})
    test = open_test(config, Evidence(paths, b""))

    outcome = await found(test, derived)
    assert outcome.effect["own_change"] == pytest.approx(1.0, abs=0.15)
    assert outcome.hypotheses[0].rank == (0, 1)
    assert outcome.log10_p == pytest.approx(-0.30103, abs=1e-4)  # one sibling: p is a half, whatever the numbers
    assert outcome.hypotheses[0].facts["siblings"]["s"] < 0.3
    assert (await found(test, base)).effect["own_change"] == 0.0
    # Whoever repeats the teacher's fine-tuning on the same texts in the same order repeats its change: the page says so.
    assert (await found(test, again)).effect["own_change"] > 0.4
