"""Load a GGUF file through transformers, without its three passes over the vocabulary.

transformers parses the file once for the config, once for the tensors and once for the tokenizer (3 s each for 49k
tokens), and builds gguf's tensor-name map once per submodule (several seconds more). Both are pure functions of the
file, so they are computed once while `read_once` is open.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from spiritsafe.errors import BadInput

__all__ = ["check_magic", "read_once"]

_patching = threading.Lock()


def check_magic(path: Path) -> None:
    """Raise `BadInput` unless the file begins like a GGUF file."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the file's permissions") from None
    if magic != b"GGUF":
        raise BadInput(f"{path}: not a GGUF file (it begins with {magic!r}); give a .gguf file or a model folder")


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Within this block every GGUF file is parsed once and no progress bar is drawn. One thread at a time."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    with _patching, contextlib.ExitStack() as stack:
        _replace(stack, gguf, "GGUFReader", functools.lru_cache(maxsize=1)(gguf.GGUFReader))
        _replace(stack, gguf, "get_tensor_name_map", functools.lru_cache(maxsize=4)(gguf.get_tensor_name_map))
        _replace(stack, loader, "tqdm", _silent)
        yield


def _replace(stack: contextlib.ExitStack, module: Any, name: str, value: Any) -> None:
    stack.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, value)


def _silent(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items
