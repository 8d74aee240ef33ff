"""The published OpenAPI document says what the guard does: no more, no less."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation.modes import GenerationMode

from faults_kit import mocking
from guard_kit import guard_config, guarding
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._openapi import openapi
from spiritsafe.serve._policy import apply_output
from spiritsafe.wire import ApiError, parse_ask
from spiritsafe.wire._ask import _KINDS

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
}
GENEROUS = {"logprobs": 20, "n": 8, "logit_bias_with_logprobs": True, "max_tokens": 4096}


def config(**changes: Any) -> GuardConfig:
    price = {"input_per_mtok": 1, "output_per_mtok": 1}
    upstream = {"name": "u", "base_url": "http://127.0.0.1:1/v1", "models": ["m", "x/n"], "price": price}
    return GuardConfig.model_validate({"upstreams": [upstream], "tiers": {"default": GENEROUS}} | changes)


def answer(kind: str, body: Any) -> ApiError | None:
    """What the guard says to a body before it looks at limits; None if it would go on."""
    guard = config()
    try:
        ask = parse_ask(kind, json.dumps(body).encode())  # type: ignore[arg-type]
        if ask.model not in guard.models:
            raise ApiError(404, "no such model")
        apply_output(ask, guard.tiers["default"], guard)
    except ApiError as error:
        return error
    return None


def check_bodies(kind: str, mode: GenerationMode, check: Callable[[Any], None]) -> None:
    document = openapi(config()) | {"security": []}  # bodies are what is wrong or right here
    operation = schemathesis.openapi.from_dict(document)[PATHS[kind]]["POST"]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def run(case: Any) -> None:
        if isinstance(case.body, dict | list | str | int | float | None):
            check(case.body)

    run()


@pytest.mark.parametrize("kind", PATHS)
def test_what_the_schema_allows_is_taken(kind: str) -> None:
    def taken(body: Any) -> None:
        refusal = answer(kind, body)
        assert refusal is None, (refusal.message, body)

    check_bodies(kind, GenerationMode.POSITIVE, taken)


@pytest.mark.parametrize("kind", PATHS)
def test_what_the_schema_forbids_is_refused(kind: str) -> None:
    def refused(body: Any) -> None:
        assert answer(kind, body) is not None, body

    check_bodies(kind, GenerationMode.NEGATIVE, refused)


@pytest.mark.parametrize("kind", PATHS)
def test_the_schema_has_the_fields_that_the_parser_knows(kind: str) -> None:
    document = openapi(config())
    (ref,) = document["paths"][PATHS[kind]]["post"]["requestBody"]["content"]["application/json"]["schema"].values()
    schema = document["components"]["schemas"][ref.rpartition("/")[2]]
    assert set(schema["properties"]) == set(_KINDS[kind])  # type: ignore[index]
    assert schema["additionalProperties"] is False


def test_bounds_are_the_widest_of_any_tier_and_allowed_fields_are_there() -> None:
    tiers = {"default": {"n": 2, "max_tokens": 100}, "big": {"n": 5, "max_tokens": 50, "logprobs": 7}}
    schemas = openapi(config(tiers=tiers, allow_fields=["my_field"]))["components"]["schemas"]
    chat = schemas["createChatCompletion"]["properties"]
    assert (chat["n"]["maximum"], chat["max_tokens"]["maximum"], chat["top_logprobs"]["maximum"]) == (5, 100, 7)
    assert chat["my_field"] == {} and chat["model"]["enum"] == ["m", "x/n"]


def test_what_needs_no_key_says_so() -> None:
    def open_paths(document: dict[str, Any]) -> set[str]:
        return {
            path
            for path, item in document["paths"].items()
            for operation in item.values()
            if operation.get("security") == []
        }

    assert open_paths(openapi(config())) == {"/healthz", "/readyz"}
    assert open_paths(openapi(config(metrics_open=True))) == {"/healthz", "/readyz", "/metrics"}


def test_every_status_that_the_guard_answers_with_is_described() -> None:
    source = Path(__file__).parents[2] / "src/spiritsafe"
    sources = [*(source / "serve").rglob("*.py"), *(source / "wire").glob("*.py")]
    sources = [path for path in sources if not path.name.startswith("_admin")]
    used = {int(status) for path in sources for status in re.findall(r"ApiError\(\s*(\d{3})", path.read_text())}
    described = set(openapi(config())["paths"]["/v1/chat/completions"]["post"]["responses"])
    # 405 and 431 come before a path's operation is known
    assert {str(status) for status in used} - {"405", "431"} <= described
    assert len(used) > 8


def test_the_document_is_valid_and_every_reference_leads_somewhere() -> None:
    document = openapi(config())
    schemathesis.openapi.from_dict(document).validate()
    json.dumps(document)
    refs = set(re.findall(r"#/components/(\w+)/([\w-]+)", json.dumps(document)))
    assert refs
    for section, name in refs:
        assert name in document["components"][section]
    named = {(section, name) for section in ("schemas", "headers") for name in document["components"][section]}
    assert named == refs


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A real guard over a mock upstream: its address and a key that may do everything."""
    folder = tmp_path_factory.mktemp("guard")
    with mocking(folder) as mock:
        settings = guard_config(folder, f"http://127.0.0.1:{mock.port}/v1", tiers={"default": GENEROUS})
        with guarding(settings) as running:
            yield running.public, running.new_key(scopes=("inference", "usage", "metrics"))


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(
    "path",
    [
        *PATHS.values(),
        "/v1/models",
        "/v1/models/{model}",
        "/v1/usage",
        "/openapi.json",
        "/metrics",
        "/healthz",
        "/readyz",
    ],
)
def test_over_http_every_answer_is_one_that_the_document_promises(
    guard: tuple[str, str], path: str, mode: GenerationMode
) -> None:
    """Statuses, content types, headers and bodies as described; what the schema allows is answered, what it forbids is
    refused; nothing is answered without a key; no 5xx."""
    public, key = guard
    headers = {"Authorization": f"Bearer {key}"}
    published = urllib.request.Request(f"{public}/openapi.json", headers=headers)
    with urllib.request.urlopen(published) as reply:
        document = json.load(reply)
    operation = next(iter(schemathesis.openapi.from_dict(document)[path].values()))
    if mode is GenerationMode.NEGATIVE and "requestBody" not in document["paths"][path].get("post", {}):
        return  # there is nothing to get wrong but the key, which every positive case tries to leave out

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def run(case: Any) -> None:
        case.call_and_validate(base_url=public, headers=headers)

    run()
