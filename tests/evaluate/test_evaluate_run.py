"""evaluate() whole, on tiny models with real files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from served import save_tiny_model
from spiritsafe.errors import BadInput
from spiritsafe.evaluate import EvaluateConfig, evaluate
from spiritsafe.evaluate._untrained import prunes
from spiritsafe.exchanges import write_exchanges
from spiritsafe.records import Exchange, Message, Prompt, Reply, Sampling, TeacherInfo, Usage
from spiritsafe.runs import Run
from spiritsafe.spend import Price
from spiritsafe.teachers import Engine, GenerateJob, Weights, load_weights
from spiritsafe.tokens import prompt_ids
from spiritsafe.train import StudentConfig, prune_layers, save_student
from train_kit import save_tiny

QUICK = EvaluateConfig(bootstrap=200, speed_prompts=2, speed_tokens=3, speed_repeats=1, samples=3, screen_tokens=30)
KEPT = [0, 1, 3]


def answered(weights: Weights, n: int, logprobs: int, split: Any, hashes: bool = True) -> list[Exchange]:
    """n exchanges whose answers the teacher really sampled."""
    sampling = Sampling(max_tokens=8, temperature=1.0, seed=3, logprobs=logprobs)
    prompts = [Prompt((Message("user", f"say {split} {i}"),)) for i in range(n)]
    jobs = [
        GenerateJob(tuple(prompt_ids(weights.tokenizer, p.messages)), sampling, index=i) for i, p in enumerate(prompts)
    ]
    done = Engine(weights).generate(jobs)
    info = TeacherInfo("tiny", tokenizer_hash=weights.tokenizer_hash if hashes else None)
    return [
        Exchange(
            request_hash=f"{i:063x}{len(split) % 10}",
            sample=0,
            prompt=p,
            reply=Reply(g.text or "cat", g.finish_reason, g.token_ids if hashes else None, g.logprobs),
            sampling=sampling,
            usage=Usage(9, len(g.token_ids)),
            usd=0.0,
            teacher=info,
            split=split,
        )
        for i, (p, g) in enumerate(zip(prompts, done, strict=True))
    ]


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("teacher"), layers=5, pad=7)


@pytest.fixture
def run(tmp_path: Path, teacher_dir: Path) -> Run:
    """A run with held-out answers and a student that lies between its untrained start and the teacher."""
    run = Run.open(tmp_path / "run")
    teacher = load_weights(teacher_dir)
    write_exchanges(run.curated, [*answered(teacher, 12, 6, "holdout"), *answered(teacher, 4, 6, "train")])
    student = prune_layers(teacher.model, [0, 1, 2, 3])
    save_student(student, teacher.tokenizer, run.student, torch.float32)
    return run


def measured(run: Run, teacher_dir: Path | None, config: EvaluateConfig = QUICK, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "student_config": StudentConfig(layers=3, strategy="even", source=str(teacher_dir) if teacher_dir else None),
        "teacher_source": None if teacher_dir is None else str(teacher_dir),
        "facts": {"train": {"kept_layers": KEPT}},
    }
    return evaluate(run, config, **(given | more))


def test_with_the_teachers_weights_everything_is_measured(run: Run, teacher_dir: Path) -> None:
    price = Price.model_validate({"input_per_mtok": 1, "output_per_mtok": 2})
    facts = {
        "collected": {"exchanges": 16, "usd": 0.5},
        "curated": {"kept": 16, "dropped": {"empty": 1}},
        "train": {"kept_layers": KEPT, "tokens": 99, "seconds": 1.5, "peak_rss_mb": 10.0},
    }
    metrics = measured(run, teacher_dir, teacher_price=price, facts=facts)
    assert json.loads(run.metrics.read_text()) == metrics
    assert metrics["kl_kind"] == "exact" and metrics["nll_unit"] == "token"
    assert metrics["n_exchanges"] == metrics["n_prompts"] == 12
    teacher, base, student = metrics["teacher"], metrics["base"], metrics["student"]
    assert teacher["layers"] == 5 and base["layers"] == 3 and student["layers"] == 4
    assert teacher["nll"] < student["nll"] < base["nll"]
    assert student["nll_gap"] == pytest.approx(student["nll"] - teacher["nll"])
    assert 0 < student["kl"] < base["kl"] and student["top1_agreement"] > base["top1_agreement"]
    assert student["kl_ci95"][0] < student["kl"] < student["kl_ci95"][1]
    recovered = metrics["recovered"]
    assert recovered["value"] == pytest.approx((student["nll"] - base["nll"]) / (teacher["nll"] - base["nll"]))
    assert recovered["ci95"][0] < recovered["value"] < recovered["ci95"][1]
    assert teacher["usd_per_mtok"] == 2.0 and student["usd_per_mtok"] is None
    assert teacher["tok_per_s"] > 0 and student["tok_per_s"] > 0
    assert metrics["speed"]["ratio"] == pytest.approx(student["tok_per_s"] / teacher["tok_per_s"])
    assert len(metrics["speed"]["runs"]["student"]) == 2
    assert metrics["collected"]["exchanges"] == 16 and metrics["collected"]["budget_usd"] is None
    assert metrics["curated"] == {"kept": 16, "dropped": {"empty": 1}} and metrics["train"]["tokens"] == 99


def test_the_best_untrained_prune_is_the_best_of_the_candidates(run: Run, teacher_dir: Path) -> None:
    metrics = measured(run, teacher_dir, QUICK.model_copy(update={"screen_tokens": 10_000}))
    best = metrics["best_untrained"]
    candidates = best["screened"]["candidates"]
    strategies = {c["strategy"] for c in candidates}
    assert strategies == {"the student's start", "even", "sensitivity"} and all(c["layers"] <= 3 for c in candidates)
    assert best["kl"] == pytest.approx(min(c["kl"] for c in candidates))
    assert best["kl"] <= metrics["base"]["kl"] and best["params"] <= metrics["student"]["params"]
    # screened on everything, the student's row there is the student's row
    assert best["screened"]["student"]["kl"] == pytest.approx(metrics["student"]["kl"])


def test_every_prune_is_no_deeper_than_the_student_and_listed_once() -> None:
    found = prunes(30, tuple(range(26)), (0, *range(4, 29)))
    assert max(len(p.keep) for p in found) == 26 and len({p.keep for p in found}) == len(found)
    assert [len(p.keep) for p in found if p.strategy == "even"] == [26, 25, 24, 22]
    assert [p.strategy for p in prunes(3, (0, 2))] == ["the student's start"]


@pytest.mark.parametrize("strategy", ["even", "sensitivity"])
def test_where_training_did_not_note_the_layers_the_start_is_made_again(
    run: Run, teacher_dir: Path, strategy: Any
) -> None:
    config = StudentConfig(layers=3, strategy=strategy)
    metrics = measured(run, teacher_dir, student_config=config, facts={})
    assert metrics["base"]["layers"] == 3 and strategy in metrics["base"]["start"]
    kinds = [c["strategy"] for c in metrics["best_untrained"]["screened"]["candidates"]]
    assert ("sensitivity" in kinds) == (strategy == "even")


def test_samples_hold_prompt_and_three_answers_and_repeat_exactly(run: Run, teacher_dir: Path) -> None:
    measured(run, teacher_dir)
    first = json.loads(run.samples.read_text())
    assert len(first) == 3 and set(first[0]) == {"prompt", "messages", "teacher", "base", "student"}
    assert first[0]["prompt"].startswith("say holdout") and first[0]["student"] != first[0]["base"]
    measured(run, teacher_dir)
    assert json.loads(run.samples.read_text()) == first


def test_an_untrained_student_recovers_nothing_and_a_copy_of_the_teacher_all(run: Run, teacher_dir: Path) -> None:
    teacher = load_weights(teacher_dir)
    shutil.rmtree(run.student)
    save_student(prune_layers(teacher.model, KEPT), teacher.tokenizer, run.student, torch.float32)
    none = measured(run, teacher_dir)
    assert none["recovered"]["value"] == pytest.approx(0, abs=1e-6)
    assert none["student"]["kl"] == pytest.approx(none["base"]["kl"])
    shutil.rmtree(run.student)
    save_student(teacher.model, teacher.tokenizer, run.student, torch.float32)
    full = measured(run, teacher_dir)
    assert full["recovered"]["value"] == pytest.approx(1, abs=1e-5)
    assert full["student"]["kl"] == pytest.approx(0, abs=1e-5) and full["student"]["top1_agreement"] == 1


def test_recovered_is_refused_when_the_start_is_the_teacher(run: Run, teacher_dir: Path) -> None:
    metrics = measured(run, teacher_dir, facts={"train": {"kept_layers": [0, 1, 2, 3, 4]}})
    assert metrics["recovered"]["value"] is None and metrics["recovered"]["ci95"] is None
    assert "cannot be told apart" in metrics["recovered"]["refused"]


def test_a_served_teacher_is_compared_by_its_own_log_probabilities(run: Run, teacher_dir: Path) -> None:
    exact = measured(run, teacher_dir)
    served = measured(run, None, student_config=StudentConfig(layers=3, source=str(teacher_dir)))
    assert served["kl_kind"] == "top-k+tail lower bound"
    assert served["teacher"]["nll"] == pytest.approx(exact["teacher"]["nll"], rel=1e-4)
    assert 0 < served["student"]["kl"] < exact["student"]["kl"]
    assert served["student"]["top1_agreement"] == exact["student"]["top1_agreement"]
    assert served["recovered"]["value"] == pytest.approx(exact["recovered"]["value"], rel=1e-4)
    assert served["teacher"]["params"] is None and served["teacher"]["tok_per_s"] is None
    assert served["speed"]["ratio"] is None and "only served" in served["speed"]["note"]


def test_without_log_probabilities_and_weights_there_is_no_teacher_to_compare_with(run: Run, teacher_dir: Path) -> None:
    write_exchanges(run.curated, answered(load_weights(teacher_dir), 6, 0, "holdout", hashes=False))
    metrics = measured(run, None, student_config=StudentConfig(layers=3, source=str(teacher_dir)))
    assert metrics["teacher"]["nll"] is None and metrics["student"]["nll"] > 0
    assert metrics["student"]["kl"] is metrics["student"]["nll_gap"] is metrics["kl_kind"] is None
    assert "likelihoods are unknown" in metrics["recovered"]["refused"]


@pytest.mark.parametrize("weights", [True, False])
def test_other_tokenizers_are_compared_per_byte_and_not_by_kl(run: Run, tmp_path: Path, weights: bool) -> None:
    other = save_tiny_model(tmp_path / "other")
    teacher = load_weights(other)
    exchanges = answered(teacher, 8, 4, "holdout")
    # what the engine calls text may replace broken UTF-8; only clean answers can be compared byte by byte
    spelt = [
        replace(e, reply=replace(e.reply, text="the cat", finish_reason="length", token_ids=None, logprobs=None))
        for e in exchanges
    ]
    if not weights:
        from spiritsafe.records import SparseLogprobs

        letters = tuple(bytes([b]) for b in b"the cat")
        flat = np.full((7, 1), -1.5, np.float32)
        told = SparseLogprobs(flat[:, 0], flat, token_bytes=letters, top_bytes=tuple((b,) for b in letters))
        spelt = [replace(e, reply=replace(e.reply, logprobs=told)) for e in spelt]
    write_exchanges(run.curated, spelt)
    metrics = measured(
        run,
        other if weights else None,
        QUICK.model_copy(update={"speed_prompts": 0}),
        student_config=StudentConfig(init=str(run.student)),
    )
    assert metrics["nll_unit"] == "byte" and metrics["kl_kind"] is None
    assert metrics["n_tokens"] == 8 * len("the cat")
    assert metrics["student"]["kl"] is None and metrics["student"]["top1_agreement"] is None
    assert metrics["best_untrained"] is None and metrics["student"]["nll"] > 0
    assert metrics["base"]["nll"] == pytest.approx(metrics["student"]["nll"])
    if not weights:
        assert metrics["teacher"]["nll"] == pytest.approx(1.5)


def test_an_hourly_price_turns_speed_into_dollars(run: Run, teacher_dir: Path) -> None:
    metrics = measured(run, teacher_dir, QUICK.model_copy(update={"usd_per_hour": 3.6}))
    for model in ("teacher", "student"):
        assert metrics[model]["usd_per_mtok"] == pytest.approx(1e3 / metrics[model]["tok_per_s"])


def test_what_is_missing_is_said_in_one_line(run: Run, teacher_dir: Path) -> None:
    shutil.rmtree(run.student)
    with pytest.raises(BadInput, match="no student here; run `spiritsafe train`"):
        measured(run, teacher_dir)
    write_exchanges(run.curated, answered(load_weights(teacher_dir), 2, 0, "train"))
    with pytest.raises(BadInput, match="no held-out exchanges; raise"):
        measured(run, teacher_dir)


def test_tasks_are_refused_until_there_are_any() -> None:
    with pytest.raises(ValueError, match="no benchmark tasks"):
        EvaluateConfig(tasks=["gsm8k"])
