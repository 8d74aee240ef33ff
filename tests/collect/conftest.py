"""The collector's tests: a working API to ask, and no long waits between tries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mock_api import MockApi, mock_api


@pytest.fixture
def api() -> Iterator[MockApi]:
    with mock_api() as running:
        yield running


@pytest.fixture
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spiritsafe.collect._collector._FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr("spiritsafe.collect._limiter._FIRST_PAUSE_S", 0.02)
