"""What the shipped registry says of hosts, models and declarations people actually write."""

from __future__ import annotations

import pytest

from spiritsafe.terms import Registry, decide

LOCAL = "127.0.0.1"

GOLDEN = [
    # host, model, declared, status, an id the decision must rest on
    ("api.openai.com", "gpt-4o", None, "forbidden_competing", "openai"),
    ("api.openai.com", "anything-at-all", "apache-2.0", "forbidden_competing", "openai"),
    ("eu.api.openai.com", "x", "mit", "forbidden_competing", "openai"),
    ("API.OpenAI.com.", "x", "mit", "forbidden_competing", "openai"),
    ("https://user:pw@api.openai.com:443/v1", "x", "mit", "forbidden_competing", "openai"),
    ("https://ａｐｉ.openai。com/v1", "x", "mit", "forbidden_competing", "openai"),
    ("acme.openai.azure.com", "gpt-4o", None, "forbidden_competing", "openai"),
    ("acme.openai.azure.com", "my-deployment", "apache-2.0", "unknown", "azure-openai"),
    ("openrouter.ai", "openai/gpt-4o", None, "forbidden_competing", "openai"),
    ("openrouter.ai", "qwen/qwen2.5-7b-instruct", None, "unknown", "openrouter"),
    ("api.anthropic.com", "claude-sonnet-4-6", None, "forbidden_competing", "anthropic"),
    ("generativelanguage.googleapis.com", "gemini-2.5-flash", None, "forbidden_competing", "google-gemini"),
    ("us-central1-aiplatform.googleapis.com", "some-model", "mit", "unknown", "google-vertex"),
    ("api.x.ai", "grok-4", None, "forbidden_competing", "xai"),
    ("bedrock-runtime.us-east-1.amazonaws.com", "deepseek.r1-v1:0", "mit", "forbidden_competing", "aws-bedrock"),
    ("vpce-1.bedrock-runtime.eu-west-1.vpce.amazonaws.com", "x", "mit", "forbidden_competing", "aws-bedrock"),
    ("api.mistral.ai", "mistral-large-latest", None, "unknown", "mistral"),
    ("api.deepseek.com", "deepseek-chat", "mit", "unknown", "deepseek-api"),
    ("llm.example.com", "qwen2.5-7b", "apache-2.0", "unknown", "qwen-2.5"),
    (LOCAL, "my-gpt-4o-alias", "apache-2.0", "forbidden_competing", "openai"),
    (LOCAL, "gpt4o", None, "forbidden_competing", "openai"),
    (LOCAL, "o3-mini", None, "forbidden_competing", "openai"),
    (LOCAL, "prod-claude3", "mit", "forbidden_competing", "anthropic"),
    (LOCAL, "models/gemini-1.5-pro", "mit", "forbidden_competing", "google-gemini"),
    (LOCAL, "openai/gpt-oss-20b", None, "unknown", "gpt-oss"),
    (None, "SmolLM2-135M-Instruct.Q4_1", None, "allowed", "smollm2"),
    (LOCAL, "smollm2-135m-instruct", "apache-2.0", "allowed", "smollm2"),
    (LOCAL, "HuggingFaceTB/SmolLM2-1.7B-Instruct", None, "allowed", "smollm2"),
    (LOCAL, "smollm2-135m", "llama-2", "forbidden", "llama-2"),
    (LOCAL, "smollm2-135m", "openai", "forbidden_competing", "openai"),
    (LOCAL, "Qwen/Qwen2.5-7B-Instruct", None, "allowed", "qwen-2.5"),
    (LOCAL, "mlx-community/Qwen2.5-7B-Instruct-4bit", None, "allowed", "qwen-2.5"),
    (LOCAL, "Qwen/Qwen2.5-72B-Instruct", "apache-2.0", "unknown", "qwen-licence"),
    (LOCAL, "qwen2.5-coder:3b", None, "unknown", "qwen-licence"),
    (LOCAL, "qwen7-9b", "apache-2.0", "unknown", "qwen-unlisted"),
    (LOCAL, "deepseek-ai/DeepSeek-R1", None, "allowed", "deepseek-r1"),
    (LOCAL, "deepseek-r1-0528", None, "allowed", "deepseek-r1"),
    (LOCAL, "DeepSeek-R1-Distill-Llama-70B", None, "allowed_with_conditions", "llama-3.3"),
    (LOCAL, "DeepSeek-R1-Distill-Llama-8B", None, "allowed_with_conditions", "llama-3.1"),
    (LOCAL, "DeepSeek-R1-Distill-Qwen-7B", None, "allowed", "qwen-2.5"),
    (LOCAL, "deepseek-ai/DeepSeek-V3", None, "allowed_with_conditions", "deepseek-1.0"),
    (LOCAL, "deepseek-v3.1", None, "unknown", "deepseek-unlisted"),
    (LOCAL, "meta-llama/Llama-3.1-8B-Instruct", None, "allowed_with_conditions", "llama-3.1"),
    (LOCAL, "meta-llama/Meta-Llama-3.1-405B", "apache-2.0", "allowed_with_conditions", "llama-3.1"),
    (LOCAL, "llama3.2:1b", None, "allowed_with_conditions", "llama-3.2"),
    (LOCAL, "accounts/fireworks/models/llama-v3p3-70b-instruct", None, "allowed_with_conditions", "llama-3.3"),
    (LOCAL, "meta.llama3-1-70b-instruct-v1:0", None, "allowed_with_conditions", "llama-3.1"),
    (None, "/cache/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f", None, "allowed_with_conditions", "llama-3.1"),
    (LOCAL, "Llama-4-Scout-17B-16E", None, "allowed_with_conditions", "llama-4"),
    (LOCAL, "Meta-Llama-3-8B-Instruct", "apache-2.0", "forbidden", "llama-3"),
    (LOCAL, "llama2:7b", None, "forbidden", "llama-2"),
    (LOCAL, "llama-9-8b", None, "unknown", "llama-unlisted"),
    (LOCAL, "google/gemma-3-270m-it", None, "allowed_with_conditions", "gemma"),
    (LOCAL, "gemma:7b", None, "allowed_with_conditions", "gemma"),
    (LOCAL, "gemma-4-4b", None, "allowed", "gemma-4"),
    (LOCAL, "gemma-7", "apache-2.0", "unknown", "gemma-unlisted"),
    (LOCAL, "codegemma-2b", None, "unknown", "gemma-unlisted"),
    (LOCAL, "nvidia/Llama-3.1-Nemotron-Nano-8B", None, "allowed_with_conditions", "llama-3.1"),
    (LOCAL, "our-own-model", "apache-2.0", "allowed", "apache-2.0"),
    (LOCAL, "our-own-model", "mrl-0.1", "allowed_with_conditions", "mistral-research"),
    ("10.1.2.3:8000", "our-own-model", "MIT", "allowed", "mit"),
    ("[::1]:8000", "our-own-model", "mit", "allowed", "mit"),
    ("vllm", "our-own-model", "mit", "allowed", "mit"),
    (LOCAL, "our-own-model", None, "unknown", "unknown"),
    (LOCAL, "our-own-model", "apache-2", "allowed", "apache-2.0"),
    (LOCAL, "our-own-model", "apache2.0-ish", "unknown", "apache2.0-ish"),
    (LOCAL, "our-own-model", "openai", "forbidden_competing", "openai"),
    (LOCAL, None, None, "unknown", "unknown"),
    ("8.8.8.8", "our-own-model", "mit", "unknown", "mit"),
]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture(autouse=True, scope="module")
def _no_user_files(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("SPIRITSAFE_TERMS", raising=False)
        yield


@pytest.mark.parametrize(("host", "model", "declared", "status", "rests_on"), GOLDEN)
def test_golden(registry: Registry, host, model, declared, status, rests_on) -> None:
    decision = decide(registry, host=host, model=model, declared=declared)
    assert decision.status == status, decision.reason
    assert rests_on in decision.terms_id.split("+")
    assert decision.permits == status.startswith("allowed")
    assert "\n" not in decision.reason
    assert "not legal advice" in decision.render()


@pytest.mark.parametrize(
    "host",
    [
        "http://api.openai.com\\@127.0.0.1/v1",
        "http://127.0.0.1@api.openai.com@localhost/",
        "local host",
        "",
        "127.0.0.1%00.openai.com",
        "::ffff:8.8.8.8",
        "134744072",  # 8.8.8.8 as one number
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "https://127.0.0.1@llm.example.com/v1",
    ],
)
def test_no_spelling_turns_a_foreign_host_into_our_own(registry: Registry, host: str) -> None:
    decision = decide(registry, host=host, model="our-own-model", declared="apache-2.0")
    assert not decision.permits, decision.reason


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "0x7f000001",
        "::ffff:127.0.0.1",
        "LOCALHOST.",
        "http://localhost:8001/v1",
        "gpu.internal",
        "fe80::1%eth0",
    ],
)
def test_own_hosts_bring_no_terms(registry: Registry, host: str) -> None:
    assert decide(registry, host=host, model="smollm2-135m", declared=None).status == "allowed"


@pytest.mark.parametrize(
    "model",
    [
        "gpt-oss-gpt-4o",
        "gpt-4o/gpt-oss-20b",
        "GPT–4o",
        "g\u200bpt-4o",
        "ｇｐｔ-4o",
        "openai%2Fgpt-4o",
        "smollm2-claude-merge",
    ],
)
def test_no_spelling_hides_a_forbidden_model(registry: Registry, model: str) -> None:
    decision = decide(registry, host=LOCAL, model=model, declared="apache-2.0")
    assert decision.status == "forbidden_competing", decision.reason


@pytest.mark.parametrize(
    ("model", "hint", "declared", "status"),
    [
        ("our-own-model", "apache-2.0", None, "allowed"),
        ("our-own-model", "llama3.1", None, "allowed_with_conditions"),
        ("our-own-model", "llama3", "apache-2.0", "forbidden"),
        ("our-own-model", "cc-by-nc-4.0", "apache-2.0", "unknown"),
        ("our-own-model", "other", "apache-2.0", "unknown"),
        ("smollm2-135m", "other", None, "allowed"),
        ("smollm2-135m", "cc-by-nc-4.0", None, "unknown"),
        ("smollm2-135m", "", None, "allowed"),
    ],
)
def test_the_weights_own_metadata_counts(registry: Registry, model, hint, declared, status) -> None:
    decision = decide(registry, host=None, model=model, declared=declared, licence_hint=hint)
    assert decision.status == status, decision.reason


def test_forbidden_competing_leaves_the_judgement_to_the_user(registry: Registry) -> None:
    assert "your judgement" in decide(registry, host="api.openai.com", model="x", declared=None).reason


def test_shipped_registry_keeps_its_own_rules(registry: Registry) -> None:
    names = [n for e in registry.entries for n in (e.id, *e.aliases)]
    assert len(names) == len(set(names))
    for entry in registry.entries:
        assert entry.source.startswith("https://"), entry.id
        # Only a pattern without gaps may speak for an entry that permits: a gap could swallow another model's name.
        if entry.status.startswith("allowed"):
            assert not any("*" in pattern for pattern in entry.models if pattern != "nemotron*"), entry.id
        if entry.version == "unread":
            assert entry.checked is None and not entry.status.startswith("allowed"), entry.id
