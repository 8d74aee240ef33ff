"""The real guard before the real teacher (`teachers run`, SmolLM2-135M): stock clients unchanged, marks end to end."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

import services
from faults_kit import Guarded

pytestmark = pytest.mark.slow
SPIRITSAFE = Path(sys.executable).parent / "spiritsafe"
MODEL = "smollm2-135m"
ASK: list[Any] = [{"role": "user", "content": "In one sentence: why is the sky blue?"}]
STORIES = (
    "a lighthouse keeper", "a night train", "bees in winter", "a salt merchant", "the first bicycle",
)  # fmt: skip


def cli(*arguments: str) -> Any:
    done = subprocess.run([str(SPIRITSAFE), *arguments, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    cli("watermark", "keys", "new", str(path), "--tokenizer", str(smollm2_gguf))
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path, keys: Path) -> Iterator[int]:
    """The port of `spiritsafe teachers run`, marking."""
    port, log = services.free_port(), tmp_path_factory.mktemp("teacher") / "log"
    command = ["teachers", "run", str(smollm2_gguf), "--port", str(port), "--name", MODEL, "--watermark", str(keys)]
    with log.open("wb") as stream:
        process = subprocess.Popen([str(SPIRITSAFE), *command], stdout=stream, stderr=stream)
    try:
        services.wait_for_port(port, process, 90)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory, teacher: int, keys: Path) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guard")
    upstream = {
        "name": "local", "base_url": f"http://127.0.0.1:{teacher}/v1", "models": [MODEL],
        "price": {"input_per_mtok": 0.15, "output_per_mtok": 0.6},
    }  # fmt: skip
    settings: dict[str, Any] = {
        "listen": f"127.0.0.1:{services.free_port()}",
        "admin": f"127.0.0.1:{services.free_port()}",
        "state": {"database": f"sqlite:///{folder / 'guard.db'}", "secrets": str(folder / "guard.secrets")},
        "upstreams": [upstream],
        "tiers": {
            "default": {"usd_lifetime": 5},
            "marked": {"usd_lifetime": 5, "watermark": True},
            "poor": {"usd_lifetime": 0.000001},
            "slow": {"requests_per_min": 2},
            "open": {"logprobs": 5},
        },
        "watermark": {"keys": str(keys)},
    }
    guarded = Guarded(folder, settings).start()
    yield guarded
    guarded.stop()


@pytest.fixture(scope="module")
def account_keys(guard: Guarded) -> dict[str, str]:
    made = {"ada": guard.new_key("ada")}
    made |= guard.new_keys("bob", "eve", tier="marked")
    for tier in ("poor", "slow", "open"):
        made |= guard.new_keys(tier, tier=tier)
    time.sleep(1.5)
    return made


@pytest.fixture
def options(guard: Guarded, account_keys: dict[str, str]) -> dict[str, Any]:
    return {"base_url": f"http://127.0.0.1:{guard.port}/v1", "api_key": account_keys["ada"]}


def test_the_stock_client_answers_streams_and_lists(guard: Guarded, options: dict[str, Any]) -> None:
    with openai.OpenAI(**options) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
        whole = client.chat.completions.create(
            model=MODEL, messages=ASK, max_tokens=20, temperature=0.7, seed=3, user="u1"
        )
        assert whole.choices[0].message.content and whole.usage and 0 < whole.usage.completion_tokens <= 20
        stream = client.chat.completions.create(
            model=MODEL, messages=ASK, max_tokens=20, temperature=0.7, seed=3, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK, max_tokens=4)
        request_id = raw.headers["x-request-id"]
        assert raw.parse().choices
    time.sleep(0.3)
    rows = {row["request_id"]: row for row in guard.rows()}
    assert rows[request_id]["tokens_out"] <= 4 and rows[request_id]["model"] == MODEL
    assert all("rivers" not in json.dumps(row) and "sky" not in json.dumps(row) for row in rows.values())


def test_the_asynchronous_client_many_at_once(options: dict[str, Any]) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(**options) as client:

            async def one(seed: int) -> str:
                if seed % 2:
                    answer = await client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=12, seed=seed)
                    return answer.choices[0].message.content or ""
                stream = await client.chat.completions.create(
                    model=MODEL, messages=ASK, max_tokens=12, seed=seed, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

            texts = await asyncio.gather(*(one(seed) for seed in range(10)))
            assert all(texts)

    asyncio.run(ask())


def test_the_streaming_helper(options: dict[str, Any]) -> None:
    with openai.OpenAI(**options) as client:
        with client.chat.completions.stream(model=MODEL, messages=ASK, max_tokens=30, stop=[" "]) as stream:
            seen = [event.type for event in stream]
            final = stream.get_final_completion()
        assert "content.delta" in seen and final.choices[0].message.content


def test_errors_are_those_the_client_knows(options: dict[str, Any], account_keys: dict[str, str]) -> None:
    def ask(key: str, model: str = MODEL, **more: Any) -> Any:
        with openai.OpenAI(**options | {"api_key": key}, max_retries=0) as client:
            return client.chat.completions.create(model=model, messages=ASK, max_tokens=4, **more)

    with pytest.raises(openai.AuthenticationError):
        ask("ss_none")
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        ask(account_keys["ada"], "gpt-9")
    with pytest.raises(openai.BadRequestError) as bad:
        ask(account_keys["ada"], extra_body={"max_token": 5})
    assert bad.value.param == "max_token"
    with pytest.raises(openai.APIStatusError) as poor:
        ask(account_keys["poor"])
    assert poor.value.status_code == 402
    ask(account_keys["slow"])
    ask(account_keys["slow"])
    with pytest.raises(openai.RateLimitError) as slow:
        ask(account_keys["slow"])
    assert 0 < float(slow.value.response.headers["retry-after"]) <= 60
    assert slow.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_log_probabilities_only_where_the_tier_allows(options: dict[str, Any], account_keys: dict[str, str]) -> None:
    def ask(key: str) -> Any:
        with openai.OpenAI(**options | {"api_key": key}) as client:
            return client.chat.completions.create(
                model=MODEL, messages=ASK, max_tokens=4, logprobs=True, top_logprobs=5
            )

    content = ask(account_keys["open"]).choices[0].logprobs.content
    assert all(len(entry.top_logprobs) == 5 for entry in content)
    with pytest.raises(openai.BadRequestError, match="log-probabilities are off"):
        ask(account_keys["ada"])


def test_curl(guard: Guarded, account_keys: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{guard.port}/v1/chat/completions"
    body = {"model": MODEL, "messages": ASK, "max_tokens": 8}
    command = ["curl", "-sS", "--fail-with-body", url, "-H", f"Authorization: Bearer {account_keys['ada']}"]
    command += ["-H", "Content-Type: application/json", "-d"]
    whole = subprocess.run([*command, json.dumps(body)], capture_output=True, text=True, check=True).stdout
    assert json.loads(whole)["choices"][0]["message"]["content"]
    streamed = subprocess.run(
        [*command, json.dumps(body | {"stream": True}), "-N"], capture_output=True, text=True, check=True
    )
    assert streamed.stdout.startswith("data: {") and streamed.stdout.endswith("data: [DONE]\n\n")


def test_a_marked_account_is_traced_by_its_replies(
    guard: Guarded,
    options: dict[str, Any],
    account_keys: dict[str, str],
    keys: Path,
    smollm2_gguf: Path,
    tmp_path: Path,
) -> None:
    """Bob's and Eve's replies go through one guard and one teacher; the text alone says whose they were."""

    def write(name: str, subject: str) -> str:
        with openai.OpenAI(**options | {"api_key": account_keys[name]}, timeout=300) as client:
            answer = client.chat.completions.create(
                model=MODEL, temperature=1.0, max_tokens=128,
                messages=[{"role": "user", "content": f"Write a long story about {subject}."}],
            )  # fmt: skip
        return answer.choices[0].message.content or ""

    work = [(name, subject) for subject in STORIES for name in ("bob", "eve")]
    with ThreadPoolExecutor(len(work)) as pool:
        texts = list(pool.map(lambda pair: write(*pair), work))
    said = {name: [text for (who, _), text in zip(work, texts, strict=True) if who == name] for name in ("bob", "eve")}
    names = {account["id"]: account for account in guard.cli("accounts", "list")["accounts"]}
    time.sleep(0.3)
    slots: dict[str, int] = {}
    for row in guard.rows():
        name = names[row["account"]]["name"]
        if name in said:
            assert row["watermark_key_id"].endswith(f"/{row['account_slot']}")
            assert slots.setdefault(name, row["account_slot"]) == row["account_slot"]
        else:
            assert row["watermark_key_id"] is None and row["account_slot"] is None
    assert len(set(slots.values())) == 2
    # Everyone the operator has, and many more.
    others = [slot for slot in range(1, 200) if slot not in slots.values()]
    listed = [f"{name}\t{slot}" for name, slot in slots.items()] + [f"other{slot}\t{slot}" for slot in others]
    (tmp_path / "accounts.txt").write_text("\n".join(listed) + "\n")
    for name, written in said.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in written))
        given = [str(file), "--keys", str(keys), "--tokenizer", str(smollm2_gguf), "--pool"]
        if name == "bob":
            found = cli("watermark", "detect", *given, "--decoys", "0")
            assert found["pooled"]["log10_p"] < -12, found
        traced = cli("watermark", "trace", *given, "--accounts", str(tmp_path / "accounts.txt"))
        assert [hit["account"] for hit in traced["pooled"]["candidates"]] == [name], traced
