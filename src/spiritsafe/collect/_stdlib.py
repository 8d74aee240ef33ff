"""Questions about the running Python's standard library: prompts that everyone has.

Sources are parsed, never imported, so nothing in them runs.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spiritsafe.errors import BadInput

__all__ = ["stdlib_questions"]

_SKIP = {
    "site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "encodings",
    "distutils", "msilib",
}  # fmt: skip
_SKIP_MODULES = {"ntpath", "genericpath", "macpath", "nturl2path", "this", "antigravity", "turtle", "sre_compile"}
_KNOWN_AS = {"posixpath": "os.path"}
_PER_MODULE = 4  # with a limit, so many questions a module at most while there are modules left

_PLAIN = (
    "In one or two sentences: what does Python's {name} do?",
    "What is Python's {name} for? Answer in one sentence.",
    "When would you use {name} in Python? Answer briefly.",
    "Explain Python's {name} to a beginner in two sentences.",
)
_WITH_SIGNATURE = (
    "What does {name}({args}) return in Python? Answer briefly.",
    "In one sentence, what do the arguments of Python's {name}({args}) mean?",
)
_WITH_DOC = (
    'Python documents {name} as "{doc}" Say that in your own words.',
    'Give a short example of when {name} is useful in Python: "{doc}"',
)


@dataclass(frozen=True, slots=True)
class _Item:
    name: str
    args: str
    doc: str


def stdlib_questions(limit: int | None, seed: int) -> list[str]:
    """Distinct short questions in an order the seed decides; about five thousand if there is no limit.

    Raises:
        BadInput: this Python comes without the sources of its library.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(_modules(root), key=lambda module: _rank(seed, module[0]))
    if not modules:
        raise BadInput(f"prompts.source python-stdlib: no sources under {root}; give prompts.path instead")
    first: list[str] = []
    rest: list[str] = []
    for name, path in modules:
        items = sorted(_items(name, path), key=lambda item: _rank(seed, item.name))
        questions = [_question(item, seed) for item in items]
        first += questions[:_PER_MODULE]
        rest += questions[_PER_MODULE:]
        if limit is not None and len(first) >= limit:
            break
    ordered = list(dict.fromkeys(first + rest))[:limit]
    return sorted(ordered, key=lambda question: _rank(seed, question))


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        private = any(part.startswith(("_", "config-")) for part in parts)
        if parts and not private and not _SKIP.intersection(parts) and parts[0] not in _SKIP_MODULES:
            name = ".".join(parts)
            yield _KNOWN_AS.get(name, name), path


def _items(module: str, path: Path) -> list[_Item]:
    """Public, documented functions, classes and methods."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    items = []
    for node in tree.body:
        found = _item(module, node)
        if found is not None:
            items.append(found)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = (_item(f"{module}.{node.name}", inner) for inner in node.body)
            items += [method for method in methods if method is not None]
    return items


def _item(prefix: str, node: ast.stmt) -> _Item | None:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return None
    doc = (ast.get_docstring(node) or "").strip().partition("\n")[0].strip()
    if not doc:
        return None
    args = ""
    if not isinstance(node, ast.ClassDef):
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
        args = ", ".join(names)
    return _Item(f"{prefix}.{node.name}", args, doc)


def _question(item: _Item, seed: int) -> str:
    templates = list(_PLAIN)
    if 0 < len(item.args) <= 40:
        templates += _WITH_SIGNATURE
    if 15 <= len(item.doc) <= 80 and '"' not in item.doc and item.doc.endswith("."):
        templates += _WITH_DOC
    choice = _rank(seed, "template", item.name)[0] % len(templates)
    return templates[choice].format(name=item.name, args=item.args, doc=item.doc)


def _rank(seed: int, *parts: str) -> bytes:
    return hashlib.sha256(":".join([str(seed), *parts]).encode()).digest()
