"""Tokens counted where a server does not say: by the model's tokenizer, or estimated from bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spiritsafe.errors import BadInput
from spiritsafe.serve._config import GuardConfig, Upstream
from spiritsafe.wire import text_size

__all__ = ["Counters", "estimate"]

_BYTES_PER_TOKEN = 3  # English takes 4 to 5, code and most other languages about 3: the estimate errs to more tokens
_HEAD = re.compile(r"\s*\S*")
_SEAMS = 2  # white space at either seam can be a token of its own
_LONGEST = 1 << 17  # characters tokenized exactly; the rest of a longer text is taken in proportion


def estimate(size: int) -> int:
    """Tokens of `size` bytes of text."""
    return -(-size // _BYTES_PER_TOKEN)


class Counters:
    """The tokenizers that a config names, loaded once.

    Raises:
        BadInput: one cannot be read.
    """

    def __init__(self, config: GuardConfig) -> None:
        paths = {upstream.tokenizer for upstream in config.upstreams if upstream.tokenizer is not None}
        self._loaded = {path: _load(path) for path in sorted(paths)}

    def count(self, upstream: Upstream, text: str) -> int:
        """Tokens of a text, without what a template adds; estimated without a tokenizer."""
        size = len(text.encode("utf-8", "replace"))
        if upstream.tokenizer is None:
            return estimate(size)
        tokenizer = self._loaded[upstream.tokenizer]
        if len(text) <= _LONGEST:
            return len(tokenizer.encode(text, add_special_tokens=False))
        part = text[:_LONGEST]
        return -(-len(tokenizer.encode(part, add_special_tokens=False)) * size // len(part.encode("utf-8", "replace")))

    def bound(self, upstream: Upstream, texts: Iterable[str]) -> int:
        """No fewer tokens than these texts take in a prompt, for tokenizers that split at white space before they
        merge. Where a text meets the template, its first and last word may be cut otherwise; these count as bytes."""
        total = 0
        for text in texts:
            stripped = text.rstrip()
            words = stripped.rsplit(None, 1)
            start = _HEAD.match(text).end()  # type: ignore[union-attr]  # it matches the empty text too
            end = max(start, len(stripped) - len(words[-1])) if words else len(text)
            edges = text[:start] + text[end:]
            total += text_size(edges) + self.count(upstream, text[start:end]) + _SEAMS
        return total


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise BadInput(f"{file}: cannot be read as a tokenizer ({error}); see upstreams[].tokenizer") from None
