"""What `watermark detect`, `trace` and `attack` read, and the tokenizer they read it with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    from spiritsafe.keys import KeySet
    from spiritsafe.watermark._documents import Documents

__all__ = ["open_tokenizer", "read_inputs", "tokenizer_mismatch"]


def open_tokenizer(source: str, keys: KeySet | None = None) -> Any:
    """A tokenizer: a model's, or a tokenizer.json; says so on stderr if it is not the one that the key set marks with.

    Raises:
        BadInput: there is no usable tokenizer there.
    """
    tokenizer = _tokenizer_file(Path(source)) if source.endswith(".json") else _of_model(source)
    if keys is not None and (warning := tokenizer_mismatch(source, tokenizer, keys)):
        print(f"warning: {warning}", file=sys.stderr)
    return tokenizer


def tokenizer_mismatch(source: str, tokenizer: Any, keys: KeySet) -> str | None:
    """What to say if the key set was bound to another tokenizer."""
    from spiritsafe.tokens import tokenizer_hash

    if keys.tokenizer_hash is None or keys.tokenizer_hash == (got := tokenizer_hash(tokenizer)):
        return None
    return (
        f"{source} is another tokenizer ({got[:12]}…) than {keys.id} marks with ({keys.tokenizer_hash[:12]}…);"
        " marks in texts will not be found unless their ids agree"
    )


def read_inputs(
    sources: Sequence[str], tokenizer: Any, *, encode: bool = True, vocab_size: int | None = None
) -> Documents:
    """Every document of the sources, in order. Without `encode`, texts are kept as they are and have no ids.

    Raises (while iterating):
        BadInput: a source cannot be read, a row is no document, or a text comes without a tokenizer.
    """
    from spiritsafe.watermark._documents import Documents, batch_encoder

    encoder = batch_encoder(tokenizer) if encode and tokenizer is not None else None
    return Documents(sources, encoder, vocab_size=vocab_size, keep_text=not encode)


def _of_model(source: str) -> Any:
    from spiritsafe.teachers import load_tokenizer

    return load_tokenizer(source)


def _tokenizer_file(path: Path) -> Any:
    """A tokenizer.json, with the special tokens that a tokenizer_config.json beside it names."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a tokenizer.json, a model folder or a .gguf file")
    if (path.parent / "tokenizer_config.json").is_file() and path.name == "tokenizer.json":
        return _of_model(str(path.parent))
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # the parser raises bare Exceptions
        raise BadInput(f"{path}: not a tokenizer.json ({' '.join(str(error).split())[:120]})") from None
