"""Taking layers out of a decoder: which ones, and how."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from spiritsafe.errors import BadInput
from spiritsafe.train._data import collate
from spiritsafe.train._examples import Example
from spiritsafe.train._loss import Head

__all__ = ["depth", "even_layers", "prune_layers", "sensitivity", "sensitivity_layers"]

_POSITIONS = 384
_CHUNK = 128


def even_layers(total: int, n: int) -> tuple[int, ...]:
    """n of `total` layer indices, evenly spaced, first and last among them (n ≥ 2)."""
    if not 2 <= n <= total:
        raise ValueError(f"cannot keep {n} of {total} layers")
    return tuple((2 * i * (total - 1) + n - 1) // (2 * (n - 1)) for i in range(n))


def sensitivity_layers(
    model: Any,
    n: int,
    calibration: Sequence[Example],
    vocab: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[int, ...]:
    """n layers whose loss hurts: those with the least `sensitivity` go, both ends stay.

    One look at each layer alone; choosing again after every removal costs n times as much for little
    (design/pruning.md).
    """
    total = depth(model)
    hurt = sensitivity(model, calibration, vocab, autocast)
    middle = sorted(range(1, total - 1), key=lambda layer: -hurt[layer])
    return tuple(sorted([0, *middle[: n - 2], total - 1]))


@torch.inference_mode()
def sensitivity(
    model: Any,
    calibration: Sequence[Example],
    vocab: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[float]:
    """KL(model ‖ model without layer i) in nats per completion token, for every layer i; `inf` for both ends.

    The hidden states before the layer are those of the whole model, so only the layers after it are run again.
    """
    if not calibration:
        raise BadInput("student.strategy: sensitivity needs training examples to look at; use strategy: even")
    batch = collate(calibration, None).to(model.device)
    positions = batch.positions[:_POSITIONS]
    head = Head.of(model, vocab)
    holder, attribute = _layer_list(model)
    layers = list(getattr(holder, attribute))
    model.eval()

    def run(stack: Sequence[nn.Module]) -> Tensor:
        with _layers_replaced(holder, attribute, stack), autocast():
            states = model.base_model(batch.input_ids, use_cache=False).last_hidden_state
        return states.flatten(0, 1)[positions]  # type: ignore[no-any-return]

    watched = [_Skip(layer) for layer in layers]
    whole = run([_Watch(layer, skip) for layer, skip in zip(layers, watched, strict=True)])
    result = [torch.inf] * len(layers)
    for i in range(1, len(layers) - 1):
        # Stand-ins keep every layer at its own index: some models look up settings by it.
        without = run([*watched[: i + 1], *layers[i + 1 :]])
        result[i] = sum(
            _kl(head.logits(p), head.logits(q)) for p, q in zip(_chunks(whole), _chunks(without), strict=True)
        ) / len(positions)
    return result


def prune_layers(model: Any, keep: Sequence[int]) -> Any:
    """A copy of a transformers decoder with only the layers `keep`, in that order; `model` is left as it was."""
    holder, attribute = _layer_list(model)
    layers = getattr(holder, attribute)
    total = len(layers)
    setattr(holder, attribute, nn.ModuleList(layers[i] for i in keep))
    try:
        pruned = copy.deepcopy(model)
    finally:
        setattr(holder, attribute, layers)
    config = pruned.config.get_text_config()
    config.num_hidden_layers = len(keep)
    for name, value in config.to_dict().items():
        if name != "num_hidden_layers" and isinstance(value, list | tuple) and len(value) == total:
            setattr(config, name, [value[i] for i in keep])  # one entry a layer: layer_types and the like
    new_holder, _ = _layer_list(pruned)
    for index, layer in enumerate(getattr(new_holder, attribute)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    return pruned.requires_grad_(True)


def depth(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def _layer_list(model: Any) -> tuple[nn.Module, str]:
    """The module that holds the decoder layers, and the attribute they are under (`layers`, `h` …)."""
    total = depth(model)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == total:
                return module, name
    raise BadInput(
        f"{type(model).__name__}: its {total} layers were not found; layers of this architecture cannot be pruned"
    )


@contextmanager
def _layers_replaced(holder: nn.Module, attribute: str, stack: Sequence[nn.Module]) -> Iterator[None]:
    layers = getattr(holder, attribute)
    setattr(holder, attribute, nn.ModuleList(stack))
    try:
        yield
    finally:
        setattr(holder, attribute, layers)


class _StandIn(nn.Module):
    """In a layer's place, with its attributes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


class _Skip(_StandIn):
    """Passes on the state that once entered its layer, whatever it is given."""

    entered: Tensor
    in_tuple = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.entered,) if self.in_tuple else self.entered


class _Watch(_StandIn):
    """Runs its layer and shows `skip` what entered."""

    def __init__(self, layer: nn.Module, skip: _Skip) -> None:
        super().__init__(layer)
        self.skip = skip

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        left = self.layer(hidden_states, *args, **kwargs)
        self.skip.entered, self.skip.in_tuple = hidden_states, isinstance(left, tuple)
        return left


def _chunks(states: Tensor) -> tuple[Tensor, ...]:
    return torch.split(states, _CHUNK)


def _kl(logits_p: Tensor, logits_q: Tensor) -> float:
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum())
