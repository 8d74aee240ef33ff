"""Where the teacher's distribution comes from under `topk`: what its API returned, or its local weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from spiritsafe.errors import BadInput
from spiritsafe.progress import Progress
from spiritsafe.records import Exchange, SparseLogprobs
from spiritsafe.runs import Run, hash_value
from spiritsafe.teachers import Weights, load_weights
from spiritsafe.tokens import template_hash
from spiritsafe.train._cache import CacheInfo, LogitCache, write_cache
from spiritsafe.train._config import TrainConfig
from spiritsafe.train._data import collate, micro_batches
from spiritsafe.train._device import Place
from spiritsafe.train._examples import Example, Vocabulary
from spiritsafe.train._loss import Head
from spiritsafe.train._preflight import check_topk, has_targets, real_vocabulary

__all__ = ["prepare_targets", "score_topk"]

_SCORE_TOKENS = 2048
_CHUNK_BYTES = 64 << 20


def prepare_targets(
    run: Run,
    exchanges: Sequence[Exchange],
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    config: TrainConfig,
    teacher_source: str | None,
    place: Place,
    progress: Progress,
) -> LogitCache:
    """The run's logit cache, reused if it was made from the same inputs, else written.

    Log-probabilities that came with the exchanges are used where every answer has them and the temperature is 1;
    otherwise local weights score the answers.

    Raises:
        BadInput: neither is to be had, the tokenizers differ, or the cache on disk is damaged.
    """
    check_topk(exchanges, examples, vocabulary, str(run.curated))
    given = has_targets(examples)
    from_api = given == len(examples) and config.temperature == 1.0
    if not from_api and teacher_source is None:
        if config.temperature != 1.0:
            raise BadInput(
                f"train.temperature: {config.temperature}, but an API's log-probabilities are at temperature 1;"
                " set it to 1 or give the teacher's weights (teacher.path)"
            )
        if given == 0:
            raise BadInput(
                f"{run.curated}: train.objective topk needs the teacher's log-probabilities and no answer has them;"
                " collect with collect.logprobs: 20, give the teacher's weights (teacher.path), or set"
                " train.objective: sft"
            )
    inputs = hash_value([[e.id, e.prompt_ids.tolist(), e.completion_ids.tolist()] for e in examples])
    common: dict[str, Any] = {
        "tokenizer_hash": vocabulary.hash,
        "template_hash": template_hash(vocabulary.tokenizer),
        "temperature": config.temperature,
        "vocab": real_vocabulary(vocabulary.tokenizer),
        "inputs": inputs,
    }
    if from_api or teacher_source is None:
        widest = max(e.targets.top.shape[1] for e in examples if e.targets is not None)
        teacher = exchanges[0].teacher
        info = CacheInfo(
            teacher=teacher.model, revision=teacher.revision, source="exchanges", k=min(widest, config.k), **common
        )
        if cache := _reusable(run, info):
            return cache
        if given < len(examples):
            progress.say(
                f"{len(examples) - given} of {len(examples)} answers came without log-probabilities: cross-entropy only"
            )
        return write_cache(run.logits, info, ((e.id, e.targets or _nothing(len(e.completion_ids))) for e in examples))
    weights = load_weights(teacher_source)
    if weights.tokenizer_hash != vocabulary.hash or weights.template_hash != common["template_hash"]:
        raise BadInput(
            f"{teacher_source}: tokenizer or chat template differs from the student's, so topk cannot compare them;"
            " set train.objective: sft"
        )
    k = min(config.k, weights.vocab_size)
    info = CacheInfo(teacher=teacher_source, revision=weights.revision, source="weights", k=k, **common)
    if cache := _reusable(run, info):
        return cache
    return write_cache(run.logits, info, score_topk(weights, examples, k, config.temperature, place, progress))


@torch.inference_mode()
def score_topk(
    weights: Weights, examples: Sequence[Example], k: int, temperature: float, place: Place, progress: Progress
) -> Iterator[tuple[str, SparseLogprobs]]:
    """(id, targets) of every example: the teacher's exact top-k at `temperature` over the real vocabulary."""
    head = Head.of(weights.model, weights.vocab_size)
    lengths = [len(e.prompt_ids) + len(e.completion_ids) for e in examples]
    done = 0
    for group in micro_batches(range(len(examples)), lengths, _SCORE_TOKENS):
        chosen = [examples[i] for i in group]
        batch = collate(chosen, None).to(weights.device)
        with place.autocast():
            states = weights.model.base_model(batch.input_ids, use_cache=False).last_hidden_state
            flat = states.flatten(0, 1)[batch.positions]
            rows = max(1, _CHUNK_BYTES // (4 * head.vocab))
            parts = [
                _top(head, part, labels, k, temperature)
                for part, labels in zip(torch.split(flat, rows), torch.split(batch.labels, rows), strict=True)
            ]
        own, top, ids = (np.concatenate(column) for column in zip(*parts, strict=True))
        start = 0
        for e in chosen:
            span = slice(start, start := start + len(e.completion_ids))
            yield e.id, SparseLogprobs(own[span], top[span], ids[span])
        done += len(group)
        progress.update("teacher", done, len(examples), "answers scored")


def _top(head: Head, states: torch.Tensor, labels: torch.Tensor, k: int, temperature: float) -> tuple[Any, Any, Any]:
    logprobs = torch.log_softmax(head.logits(states) / temperature, dim=-1)
    top, ids = logprobs.topk(k, dim=-1)
    own = logprobs.gather(1, labels[:, None]).squeeze(1)
    return own.cpu().numpy(), top.cpu().numpy(), ids.int().cpu().numpy()


def _reusable(run: Run, info: CacheInfo) -> LogitCache | None:
    if not run.logits.exists():
        return None
    cache = LogitCache.open(run.logits)
    return cache if cache.info == info else None


def _nothing(length: int) -> SparseLogprobs:
    empty = np.full((length, 1), -np.inf, np.float32)
    return SparseLogprobs(np.full(length, np.nan, np.float32), empty, np.full((length, 1), -1, np.int32))
