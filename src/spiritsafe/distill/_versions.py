"""What a run was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["versions"]

_PACKAGES = (
    "spiritsafe",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "pyarrow",
    "numpy",
    "aiohttp",
    "rensa",
)


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages a result can depend on."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
