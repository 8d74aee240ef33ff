"""vLLM 0.33's logits-processor interfaces: the real ones where vLLM is installed, else the same shapes made here.

And the two hosts that use them: what its model runners do with rows, on a small language instead of a model.
"""

from __future__ import annotations

import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

HAVE_VLLM = find_spec("vllm") is not None
VOCAB = 96
LANGUAGE = torch.from_numpy(np.random.default_rng(21).normal(0, 1.8, (VOCAB, VOCAB))).float()


class Direction(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass(frozen=True)
class Update:
    batch_size: int
    removed: Sequence[int]
    added: Sequence[tuple[int, Any, list[int] | None, list[int]]]
    moved: Sequence[tuple[int, int, Any]]


class Older(ABC):
    @abstractmethod
    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None: ...
    @abstractmethod
    def apply(self, logits: Any) -> Any: ...
    @abstractmethod
    def is_argmax_invariant(self) -> bool: ...
    @abstractmethod
    def update_state(self, batch_update: Any) -> None: ...


class Newer(ABC):
    @abstractmethod
    def apply(self, logits: Any, ctx: Any) -> Any: ...


@dataclass
class Params:
    """The fields of vLLM's `SamplingParams` that marking looks at."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    extra_args: dict[str, Any] | None = None


def interface(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin's class and what a host hands to it."""
    if HAVE_VLLM:
        from vllm import SamplingParams
        from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

        params, update, direction = SamplingParams, BatchUpdate, MoveDirectionality
    else:
        params, update, direction = Params, Update, Direction
        names = [
            "vllm",
            "vllm.v1",
            "vllm.v1.sample",
            "vllm.v1.worker",
            "vllm.v1.worker.gpu",
            "vllm.v1.worker.gpu.sample",
        ]
        for name in names:
            package = types.ModuleType(name)
            package.__path__ = []
            monkeypatch.setitem(sys.modules, name, package)
        for name, kind in (("vllm.v1.sample", Older), ("vllm.v1.worker.gpu.sample", Newer)):
            module = types.ModuleType(f"{name}.logits_processor")
            module.LogitsProcessor = kind  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, f"{name}.logits_processor", module)
        monkeypatch.delitem(sys.modules, "spiritsafe.watermark._vllm_plugin", raising=False)
    from spiritsafe.watermark._vllm_plugin import WatermarkProcessor

    if not HAVE_VLLM:  # it has stand-ins for bases: nobody else may find it
        monkeypatch.delitem(sys.modules, "spiritsafe.watermark._vllm_plugin")
    return SimpleNamespace(kind=WatermarkProcessor, Params=params, Update=update, Direction=direction)


def engine_config(**changes: Any) -> SimpleNamespace:
    """What of a `VllmConfig` the plugin looks at."""
    parallel = SimpleNamespace(data_parallel_rank=0, enable_batch_sharded_sampling=changes.pop("sharded", None))
    settings = {
        "speculative_config": None,
        "watermark_config": None,
        "model_config": SimpleNamespace(seed=0),
        "parallel_config": parallel,
    }
    return SimpleNamespace(**(settings | changes))


@dataclass(eq=False)
class Request:
    params: Any
    prompt: list[int]
    output: list[int] = field(default_factory=list)
    truth: list[int] = field(default_factory=list)  # the reply; `output` is what the host shows of it


class OlderHost:
    """Model Runner V1: rows in a persistent batch. `late` tokens are −1 in the list until the next step, or for good."""

    def __init__(self, api: Any, processor: Any, late: str = "no") -> None:
        self.api, self.processor, self.late = api, processor, late
        self.rows: list[Request] = []

    def update(self, removed: Sequence[int] = (), added: Sequence[int] = (), moved: Sequence[Any] = ()) -> None:
        entries = [(r, self.rows[r].params, self.rows[r].prompt, self.rows[r].output) for r in added]
        self.processor.update_state(self.api.Update(len(self.rows), list(removed), entries, list(moved)))

    def add(self, *requests: Request) -> None:
        first = len(self.rows)
        self.rows += requests
        self.update(added=range(first, len(self.rows)))

    def swap(self, one: int, two: int) -> None:
        self.rows[one], self.rows[two] = self.rows[two], self.rows[one]
        self.update(moved=[(one, two, self.api.Direction.SWAP)])

    def remove(self, row: int) -> Request:
        """Take a request out. The last row moves to its place, which then is not told as removed."""
        gone, last = self.rows[row], len(self.rows) - 1
        self.rows[row] = self.rows[last]
        self.rows.pop()
        if row == last:
            self.update(removed=[row])
        else:
            self.update(moved=[(last, row, self.api.Direction.UNIDIRECTIONAL)])
        return gone

    def step(self, prefilling: Sequence[Request] = ()) -> None:
        """One forward pass: what is drawn for requests still prefilling is thrown away."""
        self.processor.update_state(None)
        last = [(r.prompt + r.truth)[0 if r in prefilling else -1] for r in self.rows]
        logits = LANGUAGE[last]
        for request, token in zip(self.rows, draw(self.processor.apply(logits.clone())), strict=True):
            if request in prefilling:
                continue
            if self.late == "a step" and request.output:
                request.output[-1] = request.truth[-1]
            request.truth.append(token)
            request.output.append(token if self.late == "no" else -1)


class NewerHost:
    """Model Runner V2: requests in slots, tokens in one table."""

    def __init__(self, kind: Any, slots: int = 8, length: int = 400) -> None:
        self.table = torch.zeros(slots, length, dtype=torch.int32)
        self.total = torch.zeros(slots, dtype=torch.int32)
        self.prefill = np.zeros(slots, np.int32)
        states = SimpleNamespace(
            all_token_ids=SimpleNamespace(gpu=self.table),
            total_len=SimpleNamespace(gpu=self.total),
            prefill_len=SimpleNamespace(np=self.prefill),
        )
        self.processor = kind(engine_config(), states)
        self.requests: dict[int, Request] = {}

    def add(self, slot: int, request: Request) -> bool:
        ids = request.prompt + request.truth
        self.table[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        self.total[slot] = self.prefill[slot] = len(ids)
        self.requests[slot] = request
        return bool(self.processor.add_request(slot, request.params))

    def step(self, slots: Sequence[int], prefilling: Sequence[int] = ()) -> None:
        mapping = np.array(slots)
        lengths = self.total[mapping].numpy() - np.isin(mapping, prefilling)
        context = SimpleNamespace(idx_mapping_np=mapping, seq_lens_upper_bound_np=lengths)
        logits = LANGUAGE[self.table[mapping, (lengths - 1).tolist()].long()]
        for slot, token in zip(slots, draw(self.processor.apply(logits.clone(), context)), strict=True):
            if slot not in prefilling:
                self.table[slot, self.total[slot]] = token
                self.total[slot] += 1
                self.requests[slot].truth.append(token)


def draw(logits_BV: torch.Tensor) -> list[int]:
    """A host's own draw, after a temperature: it must find one token only, or be unmarked."""
    tokens: list[int] = torch.multinomial(torch.softmax(logits_BV / 0.7, -1), 1)[:, 0].tolist()
    return tokens
