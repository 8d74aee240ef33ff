"""The package's names: what users import, and nothing that is not there."""

from __future__ import annotations

import pytest

import spiritsafe.watermark as watermark


def test_every_exported_name_is_there() -> None:
    assert all(getattr(watermark, name) is not None for name in watermark.__all__)
    assert sorted(name for names in watermark._HOMES.values() for name in names) == sorted(watermark.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = watermark.nothing
