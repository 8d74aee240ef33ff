from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from spiritsafe.evaluate import _score
from spiritsafe.evaluate._score import run_pass, score
from spiritsafe.train import Example
from train_kit import random_targets, tiny_model

VOCAB = 50


def examples(prefix: int, n: int = 7, k: int = 0) -> list[Example]:
    """Prompts of several lengths that share their first `prefix` tokens, and completions of 1 to 6 tokens."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, VOCAB, prefix)
    made = []
    for i in range(n):
        prompt = np.concatenate([shared, [i], rng.integers(0, VOCAB, rng.integers(0, 5))]).astype(np.int32)
        completion = rng.integers(0, VOCAB, 1 + i % 6).astype(np.int32)
        targets = random_targets(len(completion), k, VOCAB, seed=i) if k else None
        made.append(Example(str(i), prompt, completion, targets))
    return made


def everything(made: list[Example]) -> list[Any]:
    return [np.ones(len(e.completion_ids), bool) for e in made]


def reference(model: Any, e: Example) -> torch.Tensor:
    """(C, VOCAB) log-softmax over the real vocabulary, by the plain forward pass of one row."""
    ids = torch.from_numpy(np.concatenate([e.prompt_ids, e.completion_ids]).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(ids).logits[0, len(e.prompt_ids) - 1 : -1, :VOCAB]
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize("prefix", [0, 9])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_scores_are_those_of_the_plain_forward_pass(
    prefix: int, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_score, "_CHUNK_BYTES", 4 * VOCAB * 3)  # three positions at a time
    teacher, student = tiny_model(VOCAB + 6, seed=1).eval(), tiny_model(VOCAB, seed=2, tie=False).eval()
    made = examples(prefix)
    passes = [run_pass(model, made, VOCAB, batch_tokens) for model in (teacher, student)]
    assert passes[0].hidden.shape == (sum(len(e.completion_ids) for e in made), 32)
    found = score(passes[1], made, everything(made), passes[0])
    for i, e in enumerate(made):
        log_p, log_q = reference(teacher, e), reference(student, e)
        nll = -log_q.gather(1, torch.from_numpy(e.completion_ids.astype(np.int64))[:, None]).sum()
        assert found.nll[i] == pytest.approx(float(nll), rel=1e-4)
        assert found.kl[i] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-3)
        assert found.agree[i] == int((log_p.argmax(1) == log_q.argmax(1)).sum())
        assert found.tokens[i] == found.taught[i] == len(e.completion_ids)


def test_a_model_against_itself_has_no_distance() -> None:
    model, made = tiny_model(VOCAB).eval(), examples(4)
    passed = run_pass(model, made, VOCAB, 256)
    found = score(passed, made, everything(made), passed)
    assert found.kl.max() < 1e-5 and (found.agree == found.taught).all() and found.distance < 1e-5


def test_positions_that_do_not_count_are_left_out_of_every_sum() -> None:
    model, made = tiny_model(VOCAB).eval(), examples(4)
    passed = run_pass(model, made, VOCAB, 256)
    keep = everything(made)
    keep[5][:] = False
    keep[4][1:] = False
    full, part = score(passed, made, everything(made), passed), score(passed, made, keep, passed)
    assert part.tokens[5] == part.nll[5] == part.taught[5] == 0 and part.tokens[4] == 1
    assert part.nll[3] == full.nll[3] and 0 < part.nll[4] < full.nll[4]


def with_top(made: list[Example], teacher: Any, k: int) -> list[Example]:
    """The examples with the teacher's top-k as an API would report it."""
    out = []
    for e in made:
        top = reference(teacher, e).topk(k)
        targets = random_targets(len(e.completion_ids), k, VOCAB)
        targets = replace(targets, top=top.values.numpy(), ids=top.indices.int().numpy())
        out.append(replace(e, targets=targets))
    return out


def test_top_k_with_a_tail_is_a_lower_bound_that_becomes_exact() -> None:
    teacher, student, made = tiny_model(VOCAB, seed=1).eval(), tiny_model(VOCAB, seed=2).eval(), examples(4)
    passed = run_pass(student, made, VOCAB, 256)
    exact = score(passed, made, everything(made), run_pass(teacher, made, VOCAB, 256))
    bounds = [score(passed, with_top(made, teacher, k), everything(made)).kl for k in (1, 5, 20, VOCAB)]
    for lower, higher in zip(bounds, [*bounds[1:], exact.kl], strict=True):
        assert (lower <= higher + 1e-4).all()
    assert bounds[1].sum() < 0.9 * exact.kl.sum()
    assert bounds[-1] == pytest.approx(exact.kl, rel=1e-3)
    assert (score(passed, with_top(made, teacher, 5), everything(made)).agree == exact.agree).all()


def test_the_bucket_by_hand() -> None:
    log_q = torch.tensor([[0.5, 0.3, 0.2]]).log()
    kl, agree, taught = _score._bucketed(log_q, torch.tensor([[1, -1]]), torch.tensor([[math.log(0.6), -math.inf]]))
    assert float(kl) == pytest.approx(0.6 * math.log(0.6 / 0.3) + 0.4 * math.log(0.4 / 0.7))
    assert (float(agree), float(taught)) == (0.0, 1.0)


def test_rows_without_a_distribution_are_not_taught() -> None:
    made = examples(0, k=4)
    assert made[3].targets is not None and made[3].targets.ids is not None
    made[3].targets.ids[1:] = -1
    made[4] = replace(made[4], targets=None)
    passed = run_pass(tiny_model(VOCAB).eval(), made, VOCAB, 256)
    found = score(passed, made, everything(made))
    assert found.taught[3] == 1 and found.taught[4] == 0 and found.kl[4] == 0
    assert np.isfinite(found.kl).all() and found.tokens[4] == len(made[4].completion_ids)
