"""The page on schemes: its code runs, its numbers are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from marking_kit import unique

from served import one_thread, save_tiny_model
from spiritsafe.keys import load_keys, new_keys
from spiritsafe.teachers import load_weights
from spiritsafe.watermark._marking import Marking
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark.schemes import Kgw

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]
DOCS = Path(__file__).parents[2] / "docs/watermark"


def test_the_transformers_example_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_keys(tmp_path / "KEYS.json", marking={}, epoch="2026-11")
    monkeypatch.chdir(tmp_path)
    model = load_weights(save_tiny_model(tmp_path / "tiny")).model
    model.generation_config.update(do_sample=True, max_new_tokens=150, eos_token_id=None, pad_token_id=257)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "README.md").read_text(), re.DOTALL)
    names = {"model": model, "inputs": {"input_ids": torch.tensor([[1, 2, 3]])}}
    exec(compile(code, "README.md", "exec"), names)
    detector = NativeDetector(load_keys(Path("KEYS.json")))
    scores = detector.scores(unique(detector, names["replies"][0].numpy().astype(np.uint32)), 0)  # type: ignore[index]
    assert detector.log10_tail(int(scores.counted.sum()), float(scores.values.sum())) < -6


@pytest.mark.parametrize(
    ("page", "settings"),
    [
        ("gumbel", ["context_width", "account_share", "surprise_bits"]),
        ("kgw", ["gamma", "delta"]),
        ("synthid", ["depth"]),
    ],
)
def test_the_pages_name_every_setting_with_its_default(page: str, settings: list[str]) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", (DOCS / f"{page}.md").read_text(), re.MULTILINE))
    assert {name: float(value) for name, value in rows.items()} == {
        name: float(Marking.model_fields[name].default) for name in settings
    }


def test_every_setting_is_on_a_page() -> None:
    pages = "".join((DOCS / f"{page}.md").read_text() for page in ("gumbel", "kgw", "synthid"))
    assert all(f"| `{name}` |" in pages for name in Marking.model_fields if name != "scheme")


def test_the_fewest_tokens_for_kgw_are_as_the_page_says() -> None:
    assert Kgw().fewest(-6) == 10 and "at least ten scored\ntokens" in (DOCS / "kgw.md").read_text()
