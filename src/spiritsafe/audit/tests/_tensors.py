"""The matrices of a decoder, read one at a time from safetensors or GGUF. No code that came with a model is run, and
nothing is unpickled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritsafe.errors import BadInput

__all__ = ["F32", "Decoder", "decoder_of", "open_decoder"]

F32 = NDArray[np.float32]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_GATED = {"mlp.gate_proj": 0, "mlp.up_proj": 1, "ffn_gate": 0, "ffn_up": 1}
_PLAIN = ("mlp.gate_up_proj", "mlp.fc1", "mlp.dense_h_to_4h", "mlp.c_fc")
_PART = "|".join(re.escape(part) for part in (*_GATED, *_PLAIN))
_MLP = re.compile(rf"^(?P<prefix>.*?)(?:layers|h|blk)\.(?P<layer>\d{{1,6}})\.(?P<part>{_PART})\.weight$")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|embed_in|token_embd)\.weight$")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """shape: (rows, columns).  read: the first so many rows (all: None), as float32."""

    shape: tuple[int, int]
    read: Callable[[int | None], F32]


class Decoder:
    """MLP inputs and embedding of one model.

    width: d, of the residual stream.  units: h, hidden units of each layer, by position from the input.
    """

    def __init__(self, path: Path, tensors: dict[str, _Tensor]) -> None:
        self.path = path
        self._layers = _layers(path, tensors)
        self._embedding = next((tensors[n] for n in sorted(tensors) if _EMBEDDING.search(n)), None)
        shapes = [_unit_shape(parts) for parts in self._layers]
        self.units: tuple[int, ...] = tuple(h for h, _ in shapes)
        self.width: int = shapes[0][1]
        if any(d != self.width for _, d in shapes):
            raise BadInput(f"{path}: its layers are of different widths; such models cannot be compared")

    def matrices(self, layer: int, units: int | None = None) -> list[F32]:
        """What feeds the hidden units of a layer: gate and up projection, (h, d) each; one where there is no gate.

        units: only the first so many.  Values that are no finite numbers are read as zero.
        """
        out = []
        for name, tensor in self._layers[layer].items():
            if name == "mlp.gate_up_proj":
                both = tensor.read(None)
                out += [half[:units] for half in np.split(both, 2)]
            elif name == "mlp.c_fc" and tensor.shape[0] < tensor.shape[1]:  # GPT-2 stores it transposed
                out.append(np.ascontiguousarray(tensor.read(None).T)[:units])
            else:
                out.append(tensor.read(units))
        return out

    def embedding(self, tokens: int) -> F32 | None:
        """The first `tokens` rows of the token embedding, (≤ tokens, d); None if there is none of that width."""
        if self._embedding is None or self._embedding.shape[1] != self.width:
            return None
        return self._embedding.read(min(tokens, self._embedding.shape[0]))


def decoder_of(model: Any, source: str) -> Decoder:
    """The decoder in a loaded model (any torch module).

    Raises:
        BadInput: no layers that can be compared.
    """

    def reader(tensor: Any) -> Callable[[int | None], F32]:
        return lambda rows: _finite(tensor[:rows].detach().float().cpu().numpy())

    held = {n: t for n, t in model.state_dict().items() if t.ndim == 2 and min(t.shape) > 0}
    return Decoder(Path(source), {n: _Tensor((t.shape[0], t.shape[1]), reader(t)) for n, t in held.items()})


def _unit_shape(parts: dict[str, _Tensor]) -> tuple[int, int]:
    name, tensor = next(iter(parts.items()))
    rows, columns = tensor.shape
    if name == "mlp.gate_up_proj":
        return rows // 2, columns
    return (columns, rows) if name == "mlp.c_fc" and rows < columns else (rows, columns)


def _layers(path: Path, tensors: dict[str, _Tensor]) -> list[dict[str, _Tensor]]:
    """The MLP tensors of each layer, from the stack with the most layers (a vision tower has fewer)."""
    stacks: dict[str, dict[int, dict[str, _Tensor]]] = {}
    for name in sorted(tensors):
        if found := _MLP.match(name):
            layers = stacks.setdefault(found["prefix"], {})
            layers.setdefault(int(found["layer"]), {})[found["part"]] = tensors[name]
    whole = [[layer for _, layer in sorted(stack.items()) if _is_whole(layer)] for _, stack in sorted(stacks.items())]
    longest = max(whole, key=len, default=[])
    if not longest:
        raise BadInput(
            f"{path}: no dense MLP layers of a known name in it; lineage reads Llama-like, GPT-2 and GPT-NeoX layers,"
            " not adapters, packed integers or mixtures of experts"
        )
    return longest


def _is_whole(layer: dict[str, _Tensor]) -> bool:
    gated = [tensor.shape for name, tensor in layer.items() if name in _GATED]
    if gated:
        return len(gated) == 2 and gated[0] == gated[1] and len(layer) == 2
    return len(layer) == 1 and not ("mlp.gate_up_proj" in layer and next(iter(layer.values())).shape[0] % 2)


@contextmanager
def open_decoder(path: Path) -> Iterator[Decoder]:
    """The decoder in a folder of safetensors, or in one .safetensors or .gguf file.

    Raises:
        BadInput: nothing there, pickled weights only, damaged, or no layers that can be compared.
    """
    files = _files(path)
    with ExitStack() as stack:
        try:
            tensors: dict[str, _Tensor] = {}
            for file in files:
                tensors = {**(_gguf(file) if file.suffix == ".gguf" else _safetensors(file, stack)), **tensors}
        except BadInput:
            raise
        # a damaged or foreign file surfaces as almost any exception from gguf, safetensors or struct
        except Exception as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise BadInput(f"{path}: cannot be read as weights ({first}); restore the file") from None
        yield Decoder(path, tensors)


def _files(path: Path) -> Sequence[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if not found:
            pickled = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
            what = (
                f"only pickled weights ({pickled[0]}), which are never opened" if pickled else "no .safetensors files"
            )
            raise BadInput(f"{path}: {what}; convert the model to safetensors")
        return found
    if not path.is_file():
        raise BadInput(f"{path}: no such file or folder; give a folder of safetensors, a .safetensors or a .gguf file")
    if path.suffix in _PICKLES:
        raise BadInput(f"{path}: pickled weights are never opened; convert the model to safetensors")
    if path.suffix not in (".safetensors", ".gguf"):
        raise BadInput(f"{path}: not weights; give a folder of safetensors, a .safetensors or a .gguf file")
    return [path]


def _safetensors(file: Path, stack: ExitStack) -> dict[str, _Tensor]:
    from safetensors import safe_open

    opened = stack.enter_context(safe_open(file, framework="pt"))  # numpy has no bfloat16

    def reader(name: str) -> Callable[[int | None], F32]:
        return lambda rows: _finite(opened.get_slice(name)[:rows].float().numpy())

    shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return {name: _Tensor((s[0], s[1]), reader(name)) for name, s in shapes.items() if len(s) == 2 and min(s) > 0}


def _gguf(file: Path) -> dict[str, _Tensor]:
    from gguf import GGUFReader, dequantize

    with open(file, "rb") as opened:
        if (magic := opened.read(4)) != b"GGUF":
            raise BadInput(f"{file}: not a GGUF file (it begins with {magic!r}); give a .gguf file or a model folder")

    def reader(tensor: Any) -> Callable[[int | None], F32]:
        return lambda rows: _finite(np.asarray(dequantize(tensor.data[:rows], tensor.tensor_type), np.float32))

    held = {t.name: t for t in GGUFReader(file).tensors if len(t.shape) == 2 and min(t.shape) > 0}
    return {name: _Tensor((int(t.shape[1]), int(t.shape[0])), reader(t)) for name, t in held.items()}


def _finite(values: F32) -> F32:
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
