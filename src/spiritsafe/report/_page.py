"""What every page shares: autoescaping, styles within the page, a file that appears whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spiritsafe.runs import atomic_write

__all__ = ["page", "write_page"]


def write_page(
    path: Path, template: str, context: Mapping[str, Any], *, styles: Sequence[str] = ("report.css",)
) -> None:
    """Render a template of this package, with these stylesheets in it, to `path`, atomically."""
    atomic_write(path, page(template, context, styles=styles).encode("utf-8", "replace"))


def page(template: str, context: Mapping[str, Any], *, styles: Sequence[str] = ("report.css",)) -> str:
    """The page itself."""
    return _environment().get_template(template).render(context, css=_css(styles), is_markup=_is_markup)


def _is_markup(value: object) -> bool:
    return isinstance(value, Markup)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("spiritsafe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _css(styles: Sequence[str]) -> Markup:
    folder = Path(__file__).parent / "templates"
    return Markup("\n".join((folder / name).read_text(encoding="utf-8") for name in styles))  # noqa: S704  (our own files)
