"""Local weights: a GGUF file, a Hugging Face folder or a hub id, as a model and its tokenizer."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from spiritsafe.errors import BadInput
from spiritsafe.runs import hash_path, hash_value
from spiritsafe.teachers import _gguf
from spiritsafe.tokens import template_hash, tokenizer_hash

__all__ = ["Weights", "load_tokenizer", "load_weights"]

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A model in eval mode with its tokenizer, and what identifies both.

    revision: SHA-256 of the weight file (of the list of files where there are several), or the hub commit.
    """

    model: Any
    tokenizer: Any
    source: str
    revision: str
    tokenizer_hash: str
    template_hash: str

    @property
    def vocab_size(self) -> int:
        """The real vocabulary: ids the tokenizer knows. Heads are often padded beyond it."""
        return min(len(self.tokenizer), int(self.model.get_output_embeddings().weight.shape[0]))

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a turn, from the generation config and the tokenizer."""
        config = getattr(self.model.generation_config, "eos_token_id", None)
        listed = config if isinstance(config, list | tuple) else [config]
        return frozenset(int(i) for i in [*listed, self.tokenizer.eos_token_id] if i is not None)

    @property
    def context(self) -> int:
        """The most positions the model takes, prompt and completion together."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)


def load_weights(source: str | Path, dtype: str = "auto", device: str = "auto", revision: str | None = None) -> Weights:
    """Load a model for inference. Only safetensors and GGUF are read, never pickles, and no remote code runs.

    source: a GGUF file, a Hugging Face folder, or a hub id `owner/name`.
    dtype: float32, bfloat16, float16; auto is float32 on a CPU and bfloat16 on CUDA.
    device: a torch device; auto is CUDA where there is one.
    revision: pins the weights: a hub revision, or (the beginning of) the SHA-256 that `Weights.revision` shows.

    Raises:
        BadInput: nothing loadable there, or not that revision; the message says what and what to do.
    """
    from transformers import AutoModelForCausalLM

    where = _locate(source, revision)
    found = where.revision()
    if revision and where.commit is None and not found.startswith(revision):
        raise BadInput(f"{where.path}: its revision is {found}, not {revision}; restore the file or change the pin")
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if dtype == "auto":
        dtype = "bfloat16" if place.type == "cuda" else "float32"
    if dtype not in _DTYPES:
        raise BadInput(f"dtype {dtype}: unknown; use auto, {', '.join(_DTYPES)}")
    with _loading(where):
        model = AutoModelForCausalLM.from_pretrained(**where.arguments, dtype=_DTYPES[dtype], use_safetensors=True)
        tokenizer = _tokenizer(where)
    _forget_quantizer(model)
    model.to(place).eval().requires_grad_(False)
    return Weights(
        model=model,
        tokenizer=tokenizer,
        source=str(source),
        revision=found,
        tokenizer_hash=tokenizer_hash(tokenizer),
        template_hash=template_hash(tokenizer),
    )


def load_tokenizer(source: str | Path) -> Any:
    """Only the tokenizer of `source` (see `load_weights`), which may be a folder that holds nothing else.

    Raises:
        BadInput: there is no usable tokenizer there.
    """
    alone = Path(source).expanduser()
    where = _Where(alone) if (alone / "tokenizer_config.json").is_file() else _locate(source)
    with _loading(where):
        return _tokenizer(where)


@dataclass(frozen=True, slots=True)
class _Where:
    """Where weights lie on disk. `commit` is the hub's, for a snapshot of a hub id."""

    path: Path
    gguf: bool = False
    commit: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` needs to read this and nothing else."""
        folder, file = (self.path.parent, {"gguf_file": self.path.name}) if self.gguf else (self.path, {})
        return {"pretrained_model_name_or_path": str(folder), "trust_remote_code": False, **file}

    def revision(self) -> str:
        if self.commit or self.gguf:
            return self.commit or hash_path(self.path)
        files = sorted(self.path.glob("*.safetensors"))
        return hash_path(files[0]) if len(files) == 1 else hash_value([[f.name, hash_path(f)] for f in files])


def _locate(source: str | Path, revision: str | None = None) -> _Where:
    path = Path(source).expanduser()
    if path.is_file():
        _gguf.check_magic(path)
        return _Where(path, gguf=True)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BadInput(f"{path}: no config.json in this folder; give a Hugging Face model folder or a .gguf file")
        return _Where(path)
    if isinstance(source, str) and _HUB_ID.match(source) and not source.endswith((".gguf", ".safetensors")):
        return _snapshot(source, revision)
    raise BadInput(f"{source}: no such file or folder; give a .gguf file, a model folder or a hub id (owner/name)")


def _snapshot(hub_id: str, revision: str | None) -> _Where:
    """Fetch a hub repository (or find it in the cache) without its pickles and code."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        folder = snapshot_download(
            hub_id, revision=revision, allow_patterns=wanted, local_files_only=not _hub_answers()
        )
    except Exception as error:  # the client raises from httpx, from the hub and from the file system
        raise BadInput(
            f"{hub_id}: cannot be fetched from the hub ({_first_line(error)});"
            " check the id, your token and the network, or give a local path"
        ) from error
    return _Where(Path(folder), commit=Path(folder).name)


@functools.cache
def _hub_answers() -> bool:
    """False if the hub's host cannot be reached: then only its cache is asked, not the network for a minute."""
    from huggingface_hub.constants import ENDPOINT

    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    url = urlsplit(ENDPOINT)
    try:
        socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), timeout=5).close()
    except OSError:
        return False
    return True


def _tokenizer(where: _Where) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**where.arguments)
    if not tokenizer.get_vocab():
        raise BadInput(f"{where.path}: its tokenizer has no vocabulary; add tokenizer.json")
    return tokenizer


@contextlib.contextmanager
def _loading(where: _Where) -> Iterator[None]:
    """Quiet transformers for the time of a load and turn its many exceptions into one line."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with _gguf.read_once() if where.gguf else contextlib.nullcontext():
            yield
    except BadInput:
        raise
    # a damaged or foreign file surfaces as almost any exception from transformers, gguf, safetensors or struct
    except Exception as error:
        raise BadInput(f"{where.path}: cannot be loaded ({_first_line(error)}); check the files there") from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200]


def _forget_quantizer(model: Any) -> None:
    """The weights are dequantised by now; left in place, the marks of a GGUF forbid training and saving."""
    if getattr(model.config, "quantization_config", None) is None or not hasattr(model, "hf_quantizer"):
        return
    del model.config.quantization_config
    model.hf_quantizer = None
    for flag in ("is_quantized", "quantization_method"):
        if hasattr(model, flag):
            delattr(model, flag)
