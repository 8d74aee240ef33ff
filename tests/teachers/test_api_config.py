"""Which teacher: what a config may say, and that keys stay out of it."""

from __future__ import annotations

import pytest

from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput
from spiritsafe.spend import FREE
from spiritsafe.teachers import TeacherConfig, open_teacher


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "give exactly one of base_url"),
        ({"base_url": "http://h/v1", "path": "x", "model": "m"}, "give exactly one of base_url"),
        ({"base_url": "http://h/v1"}, "needs model"),
        ({"base_url": "ftp://h/v1", "model": "m"}, "http://HOST:PORT/v1"),
        ({"base_url": "127.0.0.1:8001/v1", "model": "m"}, "http://HOST:PORT/v1"),
        ({"base_url": "http://h:99999/v1", "model": "m"}, "http://HOST:PORT/v1"),
        ({"base_url": "http:///v1", "model": "m"}, "http://HOST:PORT/v1"),
        ({"base_url": "https://user:secret@h/v1", "model": "m"}, "must not carry a key"),
        ({"base_url": "https://h/v1?api-key=secret", "model": "m"}, "must not carry a key"),
        ({"path": "a.gguf", "weights": "b.gguf"}, "weights is for served teachers"),
        ({"path": "a.gguf", "timeout_s": 0}, "timeout_s"),
        ({"path": "a.gguf", "modle": "m"}, "did you mean model?"),
        ({"base_url": "http://h/v1", "model": "m", "price": {"input_per_mtok": 1}}, "price.output_per_mtok is missing"),
    ],
)
def test_a_bad_config_is_one_clear_line(data: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput) as error:
        parse_config(data, TeacherConfig, where="recipe.yaml")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_names_host_and_price() -> None:
    served = TeacherConfig(base_url="https://API.Example.org:8443/v1/", model="big")
    assert (served.model_id, served.host, served.effective_price) == ("big", "api.example.org", None)
    local = TeacherConfig(path="models/SmolLM2.Q4_1.gguf")
    assert (local.model_id, local.host, local.effective_price) == ("SmolLM2.Q4_1", None, FREE)
    assert TeacherConfig(path="org/name").model_id == "org/name"


def test_the_key_comes_from_the_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TeacherConfig(base_url="http://h/v1", model="m", api_key_env="SPIRITSAFE_TEST_KEY")
    monkeypatch.delenv("SPIRITSAFE_TEST_KEY", raising=False)
    with pytest.raises(BadInput, match="SPIRITSAFE_TEST_KEY is not set"):
        open_teacher(config)
    monkeypatch.setenv("SPIRITSAFE_TEST_KEY", "two\nlines")
    with pytest.raises(BadInput, match="no HTTP header can carry"):
        open_teacher(config)
    monkeypatch.setenv("SPIRITSAFE_TEST_KEY", " sk-1 \n")
    assert config.api_key() == "sk-1"
