"""Which teacher: a served model or local weights, its price and the terms it comes under."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from spiritsafe.config import StrictModel
from spiritsafe.errors import BadInput
from spiritsafe.spend import FREE, Price
from spiritsafe.watermark._marking import MarkerConfig

if TYPE_CHECKING:
    from spiritsafe.teachers._base import Teacher

__all__ = ["TeacherConfig", "open_teacher"]


class TeacherConfig(StrictModel):
    """A served model (`base_url` and `model`) or local weights (`path`).

    api_key_env: environment variable that holds the key; keys themselves never stand in a config.
    terms: id in the terms registry that you say applies; it can only tighten what host and model imply.
    price: what the API charges; local weights cost nothing.
    weights: a local copy of a *served* teacher's weights, for what an API cannot give (pruning, full logits).
    max_batch: prompts that local weights answer together.
    watermark: mark what local weights answer, with this key set's current epoch and house slot.
    """

    model: str | None = None
    base_url: str | None = None
    path: str | None = None
    api_key_env: str | None = None
    terms: str | None = None
    price: Price | None = None
    weights: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    timeout_s: float = Field(default=120.0, gt=0)
    max_batch: int = Field(default=32, ge=1)
    watermark: MarkerConfig | None = None

    @field_validator("base_url")
    @classmethod
    def _is_an_api(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            port_is_sane = parts.port is None or parts.port > 0
        except ValueError:
            parts, port_is_sane = urlsplit(""), False
        if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_sane:
            raise ValueError("write the API's address as http://HOST:PORT/v1 or https://HOST/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("an address must not carry a key; put it in an environment variable, see api_key_env")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_source(self) -> TeacherConfig:
        if (self.base_url is None) == (self.path is None):
            raise ValueError("give exactly one of base_url (a served model) and path (local weights)")
        if self.base_url is not None and not self.model:
            raise ValueError("a served teacher needs model, the name to ask the API for")
        if self.path is not None and self.weights is not None:
            raise ValueError("weights is for served teachers; with path the weights are already local")
        if self.base_url is not None and self.watermark is not None:
            raise ValueError("watermark is for local weights (path); a served teacher marks, or not, where it runs")
        return self

    @property
    def model_id(self) -> str:
        """The model's name: as given, else from `path` (a file's stem, else the path or hub id itself)."""
        if self.model:
            return self.model
        source = self.path or ""
        return Path(source).stem if source.endswith(".gguf") else source.rstrip("/")

    @property
    def host(self) -> str | None:
        """Host name of a served teacher, without port; None for local weights."""
        return None if self.base_url is None else urlsplit(self.base_url).hostname

    @property
    def effective_price(self) -> Price | None:
        """The price as given; local weights are free; None where a served model's price is unknown."""
        return self.price or (FREE if self.path is not None else None)

    def api_key(self) -> str | None:
        """The key, from the environment.

        Raises:
            BadInput: `api_key_env` names a variable that is not set, or whose value cannot be sent in a header.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise BadInput(f"teacher.api_key_env: the environment variable {self.api_key_env} is not set; export it")
        if not key.isascii() or not key.isprintable():
            raise BadInput(f"the key in {self.api_key_env} has characters no HTTP header can carry; copy it again")
        return key


def open_teacher(config: TeacherConfig) -> Teacher:
    """Whatever answers for `config`. Loads local weights; contacts no API yet. Close it with `aclose`.

    Raises:
        BadInput: the key is missing, the weights or the watermark's keys cannot be read, or these belong to another
            tokenizer.
    """
    if config.path is not None:
        from spiritsafe.teachers._local import LocalTeacher

        markers = None
        if config.watermark is not None:
            from spiritsafe.watermark._marker import Markers

            markers = Markers.open(config.watermark)  # before the weights: a wrong key file is told at once
        return LocalTeacher(
            config.path,
            model=config.model_id,
            revision=config.revision,
            dtype=config.dtype,
            max_batch=config.max_batch,
            markers=markers,
        )
    from spiritsafe.teachers._api import ApiTeacher

    return ApiTeacher(config)
