"""The page on vLLM says what is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

from spiritsafe.keys import KeyId
from spiritsafe.watermark import _vllm_rows
from spiritsafe.watermark.adapters import engine_detector
from spiritsafe.watermark.adapters._vllm import VERSIONS

PAGE = (Path(__file__).parents[2] / "docs" / "watermark" / "engines-vllm.md").read_text(encoding="utf-8")


def test_the_examples_are_accepted() -> None:
    params, request = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.S))
    assert engine_detector("vllm-gumbel", params).scheme == "vllm-gumbel"
    KeyId.parse(request["vllm_xargs"][_vllm_rows.KEY_ID])


def test_the_version_and_the_settings_are_named() -> None:
    assert VERSIONS in PAGE
    for name in (_vllm_rows.KEYS, _vllm_rows.PASSPHRASE, _vllm_rows.GREEDY):
        assert f"| `{name}` |" in PAGE
    assert "spiritsafe.watermark._vllm_plugin:WatermarkProcessor" in PAGE
