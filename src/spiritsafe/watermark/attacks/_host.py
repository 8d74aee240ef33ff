"""Human text that everyone has: the prose of the Python standard library's docstrings."""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from spiritsafe.errors import BadInput

__all__ = ["stdlib_prose"]

_FEWEST_WORDS = 40


@cache
def stdlib_prose(characters: int = 400_000) -> str:
    """Docstrings of at least 40 words, joined by blank lines; sources are parsed, never imported.

    Raises:
        BadInput: this Python comes without the sources of its library.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[str] = []
    size = 0
    for path in sorted(root.glob("*.py")):
        for doc in _docstrings(path):
            found.append(doc)
            size += len(doc)
        if size >= characters:
            break
    if not found:
        raise BadInput(f"no sources of Python's library under {root}; give human text with --host FILE")
    return "\n\n".join(found)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = ast.get_docstring(node, clean=False)
            if body and len(body.split()) >= _FEWEST_WORDS:
                yield inspect.cleandoc(body)
