"""Lineage: files that are no weights, and transcripts that cannot be."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import leads_kit as kit
import numpy as np
import pytest
import torch
import weights_kit as wk

from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import LineageConfig
from spiritsafe.audit.tests import _tensors as tensors
from spiritsafe.audit.tests import open_test
from spiritsafe.errors import BadInput


def garbage(folder: Path) -> dict[str, tuple[Path, str]]:
    """What is given as weights, and what is said about it."""
    rng = np.random.default_rng(0)
    pickled = folder / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    disguised = folder / "model.safetensors"
    disguised.write_bytes(pickle.dumps({"a": 1}))
    huge = folder / "huge.safetensors"
    huge.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    header = json.dumps(
        {"model.layers.0.mlp.fc1.weight": {"dtype": "F32", "shape": [1 << 40, 8], "data_offsets": [0, 4]}}
    )
    lying = folder / "lying.safetensors"
    lying.write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"\0" * 4)
    deep = folder / "deep.safetensors"
    deep.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000)
    cut = wk.save(folder / "cut", wk.decoder(rng)) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    gguf = folder / "model.gguf"
    gguf.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60))
    wrong = folder / "wrong.gguf"
    wrong.write_bytes(b"PK\x03\x04")
    adapter = wk.save(folder / "adapter", {"base.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2, 3)})
    uneven = wk.decoder(rng, 2)
    uneven |= {name: torch.ones(48, 5) for name in wk.names(1)}
    return {
        "pickled": (pickled, "pickled weights .*never opened"),
        "bin": (pickled / "pytorch_model.bin", "pickled weights are never opened"),
        "disguised": (disguised, "cannot be read as weights"),
        "huge": (huge, "cannot be read as weights"),
        "lying": (lying, "cannot be read as weights"),
        "deep": (deep, "cannot be read as weights"),
        "cut": (cut, "cannot be read as weights"),
        "gguf": (gguf, "cannot be read as weights"),
        "wrong": (wrong, "not a GGUF file"),
        "adapter": (adapter, "no dense MLP layers"),
        "uneven": (wk.save(folder / "uneven", uneven), "different widths"),
        "text": (Path(__file__), "not weights"),
        "missing": (folder / "none.gguf", "no such file"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "pickled",
        "bin",
        "disguised",
        "huge",
        "lying",
        "deep",
        "cut",
        "gguf",
        "wrong",
        "adapter",
        "uneven",
        "text",
        "missing",
    ],
)
def test_what_is_no_weights_is_one_line(tmp_path: Path, kind: str) -> None:
    path, says = garbage(tmp_path)[kind]
    with pytest.raises(BadInput, match=says) as caught, tensors.open_decoder(path):
        pass
    assert "\n" not in str(caught.value)


PLACES = {"found": 3, "of": 10, "orders": 2, "choices": 1}


@pytest.mark.parametrize(
    "got",
    [
        {},
        {"suspect": 3},
        {"suspect": {"units": PLACES}},
        {"suspect": {"units": PLACES, "coordinates": None}, "base": None},
        {"suspect": {"units": PLACES | {"found": 11}, "coordinates": None}},
        {"suspect": {"units": PLACES | {"found": -1}, "coordinates": None}},
        {"suspect": {"units": PLACES | {"found": 2.5}, "coordinates": None}},
        {"suspect": {"units": PLACES | {"found": True}, "coordinates": None}},
        {"suspect": {"units": PLACES | {"found": 1 << 70, "of": 1 << 71}, "coordinates": None}},
        {"suspect": {"units": PLACES | {"orders": 0}, "coordinates": None}},
        {"suspect": {"units": PLACES | {"choices": 0}, "coordinates": None}},
        {"suspect": {"units": "many", "coordinates": None}},
    ],
)
def test_counts_that_cannot_be_are_refused(got: dict[str, Any]) -> None:
    test = open_test(LineageConfig(kind="lineage", teacher="t"), Evidence({}, b""))
    with pytest.raises(BadInput, match="damaged"):
        test.judge([kit.record(test.items()[0], got, "lineage")])


def test_a_transcript_of_something_else_is_refused() -> None:
    test = open_test(LineageConfig(kind="lineage", teacher="t", base="b", siblings={"s": "s"}), Evidence({}, b""))
    model = {"units": PLACES, "coordinates": None, "change": [0.5, 1.0]}
    base = {"units": PLACES, "coordinates": None}
    good = kit.record(test.items()[0], {"suspect": model, "base": base, "siblings": {"s": model}}, "lineage")
    assert test.judge([good]).log10_p == 0.0
    for got in (
        {"suspect": model, "base": base, "siblings": {}},
        {"suspect": model, "base": base, "siblings": [model]},
        {"suspect": model | {"change": [float("nan"), 1.0]}, "base": base, "siblings": {"s": model}},
        {"suspect": model | {"change": [1.0, 0.0]}, "base": base, "siblings": {"s": model}},
        {"suspect": model | {"change": [1.0]}, "base": base, "siblings": {"s": model}},
    ):
        with pytest.raises(BadInput):
            test.judge([replace(good, got=got)])
    with pytest.raises(BadInput, match="not one of its questions"):
        test.judge([replace(good, item="other")])
    with pytest.raises(BadInput, match="name it in"):
        open_test(LineageConfig(kind="lineage", teacher="t", siblings={"s": "s"}), Evidence({}, b""))
