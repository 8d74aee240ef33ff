"""The loop on a tiny model: it learns, it stops and goes on bit by bit, and what it writes loads elsewhere."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spiritsafe.errors import BadInput, Interrupted, SpiritsafeError
from spiritsafe.progress import Silent
from spiritsafe.runs import Run, hash_path
from spiritsafe.tokens import template_hash, tokenizer_hash
from spiritsafe.train import LoraConfig, StudentConfig, TrainConfig, train
from train_kit import save_tiny, tiny_tokenizer, training_run

PRUNE = StudentConfig(init="prune", layers=3, strategy="even")
CONFIG = TrainConfig(epochs=3, lr=3e-3, batch_tokens=120, micro_tokens=80, precision="fp32", checkpoint_every=4)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("teacher")))


def log_of(run: Run) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in run.train_log.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tok_per_s")} for row in rows]


class StopAt(Silent):
    """Sends this process a signal when training reaches a step."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def update(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        if stage == "train" and done == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("objective", ["sft", "topk"])
def test_it_learns_and_reports_what_it_did(tmp_path: Path, teacher: str, objective: Any) -> None:
    run = training_run(tmp_path / "run")
    result = train(run, CONFIG.model_copy(update={"objective": objective}), PRUNE, teacher_source=teacher)
    log = log_of(run)
    assert [row["step"] for row in log] == list(range(1, result.steps + 1))
    assert log[-1]["loss"] < log[0]["loss"]
    assert result.final_loss == log[-1]["loss"]
    assert result.kept_layers == (0, 2, 3)
    assert (log[0]["kd"] is None) == (objective == "sft")
    assert result.tokens == log[-1]["tokens"] > result.completion_tokens > 0
    assert run.logits.exists() == (objective == "topk")
    assert not run.checkpoint.exists()


def test_the_student_loads_with_plain_transformers(tmp_path: Path, teacher: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = training_run(tmp_path / "run")
    train(run, CONFIG, PRUNE, teacher_source=teacher)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.student), AutoTokenizer.from_pretrained(run.student)
    assert model.config.num_hidden_layers == 3 and len(model.model.layers) == 3
    assert tokenizer_hash(tokenizer) == tokenizer_hash(tiny_tokenizer())
    assert template_hash(tokenizer) == template_hash(tiny_tokenizer())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    prompt = torch.tensor([tokenizer.encode("the cat")])
    assert (
        model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False).shape[1]
        > prompt.shape[1]
    )


@pytest.mark.parametrize("stops", [(2,), (4,), (1, 5, 6)])
def test_stopped_and_resumed_is_bitwise_the_same_curve(tmp_path: Path, teacher: str, stops: tuple[int, ...]) -> None:
    whole, broken = training_run(tmp_path / "whole"), training_run(tmp_path / "broken")
    train(whole, CONFIG, PRUNE, teacher_source=teacher)
    for step in stops:
        with pytest.raises(Interrupted, match=f"step {step}"):
            train(broken, CONFIG, PRUNE, teacher_source=teacher, progress=StopAt(step))
        with open(broken.train_log, "a") as log:
            log.write('{"step": 99, "loss": 0.1}\n{"step": 10')  # what a crash after the checkpoint may leave
    train(broken, CONFIG, PRUNE, teacher_source=teacher)
    assert log_of(broken) == log_of(whole)
    assert hash_path(broken.student) == hash_path(whole.student)


def test_sigterm_saves_too_and_the_handlers_come_back(tmp_path: Path, teacher: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run = training_run(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(run, CONFIG, PRUNE, teacher_source=teacher, progress=StopAt(2, signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((run.checkpoint / "latest.json").read_text())["step"] == 2
    assert not run.student.exists()


def test_a_checkpoint_of_another_recipe_is_not_continued(tmp_path: Path, teacher: str) -> None:
    run, fresh = training_run(tmp_path / "run"), training_run(tmp_path / "fresh")
    with pytest.raises(Interrupted):
        train(run, CONFIG, PRUNE, teacher_source=teacher, progress=StopAt(2))
    other = CONFIG.model_copy(update={"lr": 1e-3})
    train(run, other, PRUNE, teacher_source=teacher)
    train(fresh, other, PRUNE, teacher_source=teacher)
    assert log_of(run) == log_of(fresh)


def test_a_damaged_checkpoint_is_named(tmp_path: Path, teacher: str) -> None:
    run = training_run(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(run, CONFIG, PRUNE, teacher_source=teacher, progress=StopAt(2))
    (run.checkpoint / "step-000002" / "optimizer.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(BadInput, match="damaged checkpoint"):
        train(run, CONFIG, PRUNE, teacher_source=teacher)


def test_micro_batches_do_not_change_the_step(tmp_path: Path, teacher: str) -> None:
    coarse, fine = training_run(tmp_path / "coarse"), training_run(tmp_path / "fine")
    train(coarse, CONFIG.model_copy(update={"micro_tokens": 1000}), PRUNE, teacher_source=teacher)
    train(fine, CONFIG.model_copy(update={"micro_tokens": 1}), PRUNE, teacher_source=teacher)
    for a, b in zip(log_of(coarse), log_of(fine), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_the_cache_is_reused_and_a_damaged_one_is_refused(tmp_path: Path, teacher: str) -> None:
    run = training_run(tmp_path / "run")
    train(run, CONFIG, PRUNE, teacher_source=teacher)
    shard = run.logits / "shard-00000.bin"
    written = shard.stat().st_mtime_ns
    train(run, CONFIG, PRUNE, teacher_source=teacher)
    assert shard.stat().st_mtime_ns == written
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BadInput, match=r"shard-00000.bin: its checksum.*delete .*logits and run train again"):
        train(run, CONFIG, PRUNE, teacher_source=teacher)


def test_local_weights_score_answers_that_came_without_logprobs(tmp_path: Path, teacher: str) -> None:
    """The unpruned teacher as its own student: at step 1 the KL to itself is nothing but the cache's rounding."""
    run = training_run(tmp_path / "run", logprobs=0)
    result = train(run, CONFIG, StudentConfig(init=teacher), teacher_source=teacher)
    assert json.loads((run.logits / "header.json").read_text())["source"] == "weights"
    assert log_of(run)[0]["kd"] < 1e-3
    assert log_of(run)[0]["agree"] == 1.0
    assert result.kept_layers is None


def test_scratch_students_and_adapters_train(tmp_path: Path, teacher: str) -> None:
    from transformers import AutoModelForCausalLM

    scratch = training_run(tmp_path / "scratch")
    train(scratch, CONFIG, StudentConfig(init="scratch", hidden=32, heads=2, layers=2), teacher_source=teacher)
    assert log_of(scratch)[-1]["loss"] < log_of(scratch)[0]["loss"]

    adapted = training_run(tmp_path / "adapted")
    with_lora = CONFIG.model_copy(update={"lora": LoraConfig(r=4, dropout=0.1)})
    with pytest.raises(Interrupted):
        train(adapted, with_lora, PRUNE, teacher_source=teacher, progress=StopAt(3))
    saved = (adapted.checkpoint / "step-000003" / "model.safetensors").stat().st_size
    train(adapted, with_lora, PRUNE, teacher_source=teacher)
    assert log_of(adapted)[-1]["loss"] < log_of(adapted)[0]["loss"]
    assert saved < (adapted.student / "model.safetensors").stat().st_size
    names = AutoModelForCausalLM.from_pretrained(adapted.student).state_dict()
    assert not any("lora" in name for name in names)

    whole = training_run(tmp_path / "whole")
    train(whole, with_lora, PRUNE, teacher_source=teacher)
    assert log_of(whole) == log_of(adapted)  # dropout repeats too


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, teacher: str) -> None:
    run = training_run(tmp_path / "run")
    with pytest.raises(SpiritsafeError, match=r"step \d+ has loss .*lower train.lr"):
        train(run, CONFIG.model_copy(update={"lr": 1e30, "epochs": 10}), PRUNE, teacher_source=teacher)
    assert not run.student.exists()


def test_a_disk_that_takes_no_more_is_one_line(tmp_path: Path, teacher: str) -> None:
    """A file-size limit stands in for a full disk: the write of the weights fails in the same place."""
    run = training_run(tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(SpiritsafeError, match=r"cannot write \(.+\); free some space") as caught:
            train(run, CONFIG, PRUNE, teacher_source=teacher)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert not run.student.exists()


def test_nothing_to_train_on(tmp_path: Path, teacher: str) -> None:
    run = training_run(tmp_path / "run")
    with pytest.raises(BadInput, match=r"no exchange of the train split fits in train\.max_length 8"):
        train(run, CONFIG.model_copy(update={"max_length": 8}), PRUNE, teacher_source=teacher)


def test_bf16_stays_near_fp32(tmp_path: Path, teacher: str) -> None:
    exact, rough = training_run(tmp_path / "exact"), training_run(tmp_path / "rough")
    train(exact, CONFIG, PRUNE, teacher_source=teacher)
    result = train(rough, CONFIG.model_copy(update={"precision": "bf16"}), PRUNE, teacher_source=teacher)
    assert result.precision == "bf16"
    np.testing.assert_allclose(
        [row["loss"] for row in log_of(rough)], [row["loss"] for row in log_of(exact)], rtol=0.05
    )
