"""Strictness is a total order, and nothing a user declares ever loosens a decision."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.terms import STRICTNESS, Registry, combine, decide, stricter
from spiritsafe.terms._names import parse_host
from spiritsafe.terms._registry import shipped

REGISTRY: Registry = shipped()
IDS = [n for e in REGISTRY.entries for n in (e.id, *e.aliases)]
HOSTS = st.sampled_from(
    [
        None,
        "127.0.0.1",
        "vllm",
        "api.openai.com",
        "openrouter.ai",
        "llm.example.com",
        "x y",
        *(h for e in REGISTRY.entries for h in e.hosts if "*" not in h),
    ]
)
MODELS = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            [
                "smollm2",
                "llama",
                "-",
                "/",
                "--",
                "3.1",
                "3",
                "8b",
                "gpt",
                "4o",
                "oss",
                "qwen",
                "2.5",
                "72b",
                "r1",
                "deepseek",
                "claude",
                "x",
            ]
        ),
        max_size=6,
    ).map("".join),
)
DECLARED = st.one_of(
    st.none(), st.sampled_from(IDS), st.text(max_size=20), st.lists(st.sampled_from(IDS), max_size=3).map("+".join)
)
STATUS = st.sampled_from(STRICTNESS)
RANK = STRICTNESS.index


@given(st.lists(STATUS), STATUS)
def test_stricter_is_the_join_of_a_total_order(statuses, other) -> None:
    joined = stricter(*statuses, other)
    assert joined in (*statuses, other)
    assert all(RANK(joined) >= RANK(s) for s in (*statuses, other))
    assert stricter(joined, other) == joined == stricter(stricter(*statuses), other)


def test_order_is_antisymmetric_and_complete() -> None:
    for a, b in itertools.combinations(STRICTNESS, 2):
        assert stricter(a, b) == stricter(b, a) == b


@given(HOSTS, MODELS, DECLARED)
def test_declared_never_loosens_what_is_known(host, model, declared) -> None:
    declared_decision = decide(REGISTRY, host=host, model=model, declared=declared)
    silent = decide(REGISTRY, host=host, model=model, declared=None)
    known = [a for a in silent.entries if a.entry is not None or "host" in a.why]
    assert RANK(declared_decision.status) >= max((RANK(a.status) for a in known), default=0)
    assert set(known) <= set(declared_decision.entries)
    if RANK(declared_decision.status) < RANK(silent.status):
        # The one gap a declaration fills: nothing knows the model, and no foreign host is in play.
        assert silent.status == "unknown"
        assert not REGISTRY.for_model(model or "")
        assert parse_host(host).kind == "own"


@given(HOSTS, MODELS, DECLARED, DECLARED)
def test_declaring_more_never_loosens(host, model, first, second) -> None:
    one = decide(REGISTRY, host=host, model=model, declared=first)
    both = decide(REGISTRY, host=host, model=model, declared=f"{first or ''}+{second or ''}")
    if first and any(a.entry is not None and a.entry.kind == "licence" for a in one.entries):
        assert RANK(both.status) >= RANK(one.status)


@given(HOSTS, MODELS, DECLARED)
def test_host_and_model_both_count(host, model, declared) -> None:
    decision = decide(REGISTRY, host=host, model=model, declared=declared)
    for entry, _ in (*REGISTRY.for_model(model or ""), *REGISTRY.for_host(parse_host(host))):
        assert RANK(decision.status) >= RANK(entry.status)
    if parse_host(host).kind == "malformed":
        assert not decision.permits


@given(HOSTS, MODELS, DECLARED)
def test_a_row_never_reads_milder_than_its_collection(host, model, declared) -> None:
    """What a row records, declared again when the dataset is checked, leads to the same verdict."""
    collected = decide(REGISTRY, host=host, model=model, declared=declared)
    recorded = None if collected.terms_id == "unknown" else collected.terms_id
    checked = decide(REGISTRY, host=host, model=model, declared=recorded)
    assert checked.status == collected.status
    assert len(collected.terms_version.split("+")) == len(collected.terms_id.split("+"))


@given(st.lists(st.tuples(HOSTS, MODELS), min_size=1, max_size=4))
def test_combined_is_the_strictest_part(asked) -> None:
    parts = [decide(REGISTRY, host=h, model=m, declared=None) for h, m in asked]
    combined = combine(parts)
    assert combined.status == stricter(*(p.status for p in parts))
    assert set(combined.conditions) == {c for p in parts for c in p.conditions}


@given(st.text(max_size=40))
def test_any_host_text_has_a_reading(text: str) -> None:
    host = parse_host(text)
    assert host.kind in ("own", "public", "malformed")
    assert parse_host(text.upper()).kind == parse_host(text.lower()).kind or not text.isascii()
