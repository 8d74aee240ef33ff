"""The loop: curated exchanges in, a student out.

    curated.parquet → examples → (topk: logits/) → steps → train.jsonl, checkpoint/ → student/

Read `train` from top to bottom. A step is a set of examples with about `batch_tokens` tokens; it is cut into padded
micro-batches, and the loss of every micro-batch is divided by the completion tokens of the whole step, so neither the
cutting nor the number of processes changes it. Only hidden states at completion positions reach the head.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from spiritsafe.errors import Interrupted, SpiritsafeError
from spiritsafe.progress import Progress, Silent
from spiritsafe.runs import Run, hash_value
from spiritsafe.train._checkpoint import State, load_checkpoint, save_checkpoint, trim_log
from spiritsafe.train._config import StudentConfig, TrainConfig
from spiritsafe.train._data import Batch, load_examples
from spiritsafe.train._device import Place
from spiritsafe.train._examples import Vocabulary
from spiritsafe.train._init import Student, init_student, load_source, save_student
from spiritsafe.train._lora import add_lora, merge_lora
from spiritsafe.train._loss import Head, LossWeights, Metrics, fused_loss
from spiritsafe.train._plan import Plan
from spiritsafe.train._preflight import check_head, real_vocabulary
from spiritsafe.train._signals import graceful_interrupt
from spiritsafe.train._targets import prepare_targets

__all__ = ["TrainResult", "TrainStep", "train"]

_CALIBRATION = 10


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training did. tokens: prompt and completion positions trained on, padding left out, all epochs."""

    steps: int
    tokens: int
    completion_tokens: int
    seconds: float
    peak_rss_mb: float
    final_loss: float
    kept_layers: tuple[int, ...] | None
    student: str
    precision: str
    device: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def train(
    run: Run,
    train_config: TrainConfig,
    student_config: StudentConfig,
    *,
    teacher_source: str | None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a student on the train split of `run.curated`; goes on from `run.checkpoint` if it fits.

    teacher_source: the teacher's weights, if they are at hand: what `prune` cuts, and what scores the answers under
    `topk` when they came without log-probabilities.

    Raises:
        BadInput: data, weights or cache are missing, damaged or do not fit together.
        Interrupted: SIGINT or SIGTERM; a checkpoint was written.
        SpiritsafeError: the loss is no longer a number, or the disk is full.
    """
    from safetensors import SafetensorError

    try:
        with torch.random.fork_rng(devices=[]):
            return _train(run, train_config, student_config, teacher_source, progress or Silent())
    except KeyboardInterrupt:
        raise Interrupted(f"{run.path}: training stopped; run train again to go on") from None
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpiritsafeError(
            f"{run.path}: cannot write ({reason}); free some space and run train again, it goes on from its checkpoint"
        ) from error


def _train(
    run: Run, config: TrainConfig, student_config: StudentConfig, teacher_source: str | None, progress: Progress
) -> TrainResult:
    place = Place.find(config.precision)
    source = load_source(student_config, teacher_source)
    vocabulary = Vocabulary.of(source.tokenizer)
    exchanges, examples = load_examples(run, vocabulary, min(config.max_length, source.context))
    calibration = examples[:_CALIBRATION]
    student = init_student(student_config, source, calibration, config.seed, place.autocast)
    check_head(student.model, student.tokenizer, student.description)
    targets_of, cache_facts = None, None
    if config.objective == "topk":
        # One process writes the cache; the others wait and then find it made from the same inputs.
        if not place.main:
            place.wait()
        cache = prepare_targets(run, exchanges, examples, vocabulary, config, teacher_source, place, progress)
        if place.main:
            place.wait()
        targets_of, cache_facts = cache.targets, asdict(cache.info)

    revision = source.revision
    del source  # a pruned student needs the whole model no longer

    module = TrainStep(add_lora(student.model, config.lora), real_vocabulary(student.tokenizer), config)
    wrapped = place.wrap(module)
    optimizer = _optimizer(module, config)
    inputs = [config.model_dump(mode="json"), student_config.model_dump(mode="json"), revision, place.precision]
    fingerprint = hash_value([*inputs, cache_facts, [[e.id, e.completion_ids.tolist()] for e in examples]])
    state = load_checkpoint(run.checkpoint, module, optimizer, fingerprint) or State(fingerprint)
    if state.step:
        progress.say(f"resuming at step {state.step}")
    if place.main:
        trim_log(run.train_log, state.step)

    plan = Plan(examples, targets_of, config, place)
    with graceful_interrupt() as stop:
        while state.step < plan.total:
            state = _step(run, wrapped, optimizer, plan, state, progress)
            due, stopping = state.step % config.checkpoint_every == 0, place.any(stop.requested)
            if place.main and ((due and state.step < plan.total) or stopping):
                save_checkpoint(run.checkpoint, module, optimizer, state)
            if stopping:
                raise Interrupted(f"{run.path}: stopped at step {state.step}, saved; run train again to go on")
    place.wait()
    if place.main:
        _publish(run, module, student, torch.bfloat16 if place.bf16 else torch.float32)
    place.wait()
    return TrainResult(
        steps=state.step,
        tokens=state.tokens,
        completion_tokens=state.completion_tokens,
        seconds=round(state.seconds, 3),
        peak_rss_mb=round(_peak_rss_mb(), 1),
        final_loss=state.loss,
        kept_layers=student.kept_layers,
        student=student.description,
        precision=place.precision,
        device=str(place.device),
    )


class TrainStep(nn.Module):
    """Body, head and loss as one module, so that data-parallel wrappers see every parameter used inside `forward`."""

    def __init__(self, model: Any, vocab: int, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.vocab = vocab
        self.weights = LossWeights(config.kd_weight, config.ce_weight, config.temperature)
        model.train()

    def forward(self, batch: Batch, normaliser: float) -> tuple[Tensor, Tensor]:
        """Loss of one micro-batch (scalar) and its metric sums; see `fused_loss`."""
        causal = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        states_BTH = causal.base_model(batch.input_ids, use_cache=False).last_hidden_state
        hidden_NH = states_BTH.flatten(0, 1).index_select(0, batch.positions)
        head = Head.of(causal, self.vocab)
        return fused_loss(
            hidden_NH, head, batch.labels, normaliser, self.weights, batch.teacher_ids, batch.teacher_logprobs
        )


def _step(run: Run, module: nn.Module, optimizer: AdamW, plan: Plan, state: State, progress: Progress) -> State:
    """One optimiser step, logged; returns the state after it."""
    began, step, config, place = time.perf_counter(), state.step, plan.config, plan.place
    torch.manual_seed(hash((config.seed, step, place.rank)) % 2**63)
    batches, normaliser = plan.batches(step)
    loss = torch.zeros((), device=place.device)
    sums = torch.zeros(len(fields(Metrics)), device=place.device, dtype=torch.float64)
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        with nullcontext() if last else place.without_sync(module):
            with place.autocast():
                part, part_sums = module(batch, normaliser)
            part.backward()
        loss += part.detach() / place.world
        sums += part_sums if math.isfinite(normaliser) else 0
    value, metrics = float(place.total(loss)), Metrics.from_tensor(place.total(sums))
    norm = float(nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], config.grad_clip))
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise SpiritsafeError(_diverged(run, step + 1, value, norm, config))
    for group in optimizer.param_groups:
        group["lr"] = plan.learning_rate(step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    spent = time.perf_counter() - began
    speed = plan.tokens(step) / spent
    state = replace(
        state,
        step=step + 1,
        tokens=state.tokens + plan.tokens(step),
        completion_tokens=state.completion_tokens + plan.completion_tokens(step),
        seconds=state.seconds + spent,
        loss=value,
    )
    if place.main:
        row: dict[str, float | None] = {"step": state.step, "epoch": plan.steps[step][0] + 1, "loss": value}
        row |= metrics.means(plan.completion_tokens(step))
        row |= {"grad_norm": norm, "lr": plan.learning_rate(step), "tokens": state.tokens}
        row |= {"tok_per_s": round(speed, 1), "seconds": round(state.seconds, 3)}
        with open(run.train_log, "a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
    progress.update("train", state.step, plan.total, f"loss {value:.3f}, {speed:.0f} tok/s")
    return state


def _optimizer(module: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW; matrices decay, norms and biases do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def _publish(run: Run, module: TrainStep, student: Student, dtype: torch.dtype) -> None:
    """Put the finished student in place, whole, and drop the checkpoint it makes useless."""
    partial = run.student.with_name(run.student.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_student(merge_lora(module.model), student.tokenizer, partial, dtype)
    shutil.rmtree(run.student, ignore_errors=True)
    partial.rename(run.student)
    shutil.rmtree(run.checkpoint, ignore_errors=True)


def _diverged(run: Run, step: int, loss: float, norm: float, config: TrainConfig) -> str:
    kept = f"; the checkpoint in {run.checkpoint} is from before" if run.checkpoint.exists() else ""
    return (
        f"{run.path}: step {step} has loss {loss} and gradient norm {norm}; lower train.lr ({config.lr:g})"
        f" or set train.precision: fp32{kept}"
    )


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
