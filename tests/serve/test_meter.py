"""The meter: bounds that hold with real tokenizers and templates, prices in time, and usage that is not believed blindly."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from asks import CHAT, CHAT_FULL, COMPLETIONS, EMBEDDINGS, RESPONSES, TOOL, jsons, mutated
from spiritsafe.errors import BadInput
from spiritsafe.records import Message, Usage
from spiritsafe.serve._config import GuardConfig, Upstream
from spiritsafe.serve._meter import Meter, StreamMeter
from spiritsafe.serve._policy import Applied, apply_output, output_rules
from spiritsafe.serve._types import Identity
from spiritsafe.tokens import prompt_ids
from spiritsafe.wire import ApiError, Ask, parse_ask, text_size

WHO = Identity("a", "a", None, "default", "k", frozenset(), 0.0)


class Bench:
    """A config of one upstream, its meter, and requests ready to be metered."""

    def __init__(
        self, prices: list[dict[str, Any]] | None = None, tier: dict[str, Any] | None = None, **upstream: Any
    ) -> None:
        price = {"input_per_mtok": 1, "output_per_mtok": 2}
        served = {"name": "a", "base_url": "http://127.0.0.1:1/v1", "models": ["m"], "price": price, **upstream}
        generous = {"n": 8, "logprobs": 20, "logit_bias_with_logprobs": True, **(tier or {})}
        data = {"upstreams": [served], "tiers": {"default": generous}, "prices": prices or []}
        self.config = GuardConfig.model_validate(data)
        self.meter = Meter(self.config)

    @property
    def upstream(self) -> Upstream:
        return self.config.upstreams[0]

    def ask(self, kind: Any, body: dict[str, Any] | bytes, *, tight: bool = False) -> tuple[Ask, Applied]:
        """A request with its bounds worked out."""
        ask = parse_ask(kind, body if isinstance(body, bytes) else orjson.dumps(body))
        applied = apply_output(ask, output_rules(self.config, WHO), self.config)
        self.meter.worst(ask, applied, self.upstream, tight=tight)
        return ask, applied

    def worst(self, kind: Any, body: dict[str, Any], *, tight: bool = False) -> tuple[int, int]:
        return self.ask(kind, body, tight=tight)[1].bounds

    def usage(self, kind: Any, body: dict[str, Any], reply: dict[str, Any]) -> tuple[Usage, str]:
        return self.meter.usage(*self.ask(kind, body), reply, self.upstream)

    def stream(self, body: dict[str, Any], kind: Any = "chat") -> StreamMeter:
        return self.meter.stream(*self.ask(kind, body | {"stream": True}), self.upstream)


def chat_of(*texts: str) -> dict[str, Any]:
    roles = ["system", "user", "assistant"]
    return {
        "model": "m",
        "messages": [{"role": roles[min(i, 1 + i % 2)], "content": text} for i, text in enumerate(texts)],
    }


# Bounds


def test_a_bound_is_bytes_template_and_pieces() -> None:
    bench = Bench(template_tokens=100, image_tokens=500)
    assert bench.worst("chat", chat_of("abc", "é") | {"max_tokens": 7, "n": 2}) == (3 + 2 + 100 + 2 * 32, 14)
    assert bench.worst("completions", {"model": "m", "prompt": ["ab", "c"], "max_tokens": 5, "n": 3}) == (3 + 2 * 8, 30)
    assert bench.worst("completions", {"model": "m", "prompt": [5, 6], "max_tokens": 5}) == (2 + 8, 5)
    assert bench.worst("embeddings", EMBEDDINGS) == (6 + 16, 0)
    images = [{"type": "image_url", "image_url": {"url": "http://a/b"}}] * 2
    assert bench.worst("chat", {"model": "m", "messages": [{"role": "user", "content": images}], "max_tokens": 1}) == (
        100 + 3 * 32 + 2 * (500 + 16), 1
    )  # fmt: skip


def test_a_context_bounds_both() -> None:
    bench = Bench(context=50)
    assert bench.worst("chat", chat_of("x" * 1000) | {"max_tokens": 60}) == (50, 50)
    assert bench.worst("completions", {"model": "m", "prompt": ["x" * 900] * 3, "max_tokens": 60, "n": 2}) == (150, 300)


def test_a_prediction_may_be_billed_as_output() -> None:
    body = CHAT | {"prediction": {"type": "content", "content": "x" * 30}, "max_tokens": 5, "n": 2}
    assert Bench().worst("chat", body)[1] == 2 * (5 + 30)


def bytes_tokenizer(normalizer: Any = None, special: tuple[str, ...] = ()) -> Tokenizer:
    """Byte-level with no merges at all: a token a byte, the most there can be."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def fallback_tokenizer() -> Tokenizer:
    """As SentencePiece with byte fallback: a few words, spaces as ▁, all else bytes."""
    vocab = {token: i for i, token in enumerate(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "e", "▁a"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": bytes_tokenizer,
    "bytes after NFC": lambda: bytes_tokenizer(normalizers.NFC()),
    "bytes after NFKC": lambda: bytes_tokenizer(normalizers.NFKC()),
    "byte fallback": fallback_tokenizer,
}
unicode = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\ufdfa\U0001d160\u0958\u0390ﷺ…é\u0301\0\x1b👩‍👩‍👧 \n▁"),
    ),
    max_size=60,
)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_tokenizer_makes_more_tokens_than_bytes_are_counted(name: str) -> None:
    tokenizer = TOKENIZERS[name]()

    @given(unicode)
    @settings(max_examples=150, deadline=None)
    def holds(text: str) -> None:
        # the prefix that SentencePiece puts before a text is among the tokens around a message
        assert len(tokenizer.encode(text)) <= text_size(text) + 1

    holds()


TEMPLATES = {
    "chatml": (
        "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson(indent=4) }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    ),
    "headers": (
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}<|end|>\n\n"
        "{{ (m.content or '') }}{% if m.tool_call_id %}[{{ m.tool_call_id }}]{% endif %}<|eot|>{% endfor %}"
        "{% for t in tools or [] %}{{ t.function | tojson(indent=4) }}\n\n{% endfor %}<|start|>assistant<|end|>\n\n"
    ),
    "results quoted": (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ {'id': m.tool_call_id, 'output': m.content} | tojson }}"
        "{% else %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c | tojson(indent=4) }}{% endfor %}{% endif %}\n"
        "{% endfor %}"
    ),
    "calls parsed": (
        "{% for m in messages %}[{{ m.role }}] {{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "{{ c.id }}{{ c.function.name }}{{ parse(c.function.arguments) | tojson(indent=4) }}{% endfor %}\n{% endfor %}"
    ),
}
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>")

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
schemas = st.dictionaries(names, jsons, max_size=3)
conversations = st.fixed_dictionaries({
    "messages": st.lists(
        st.one_of(
            st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": unicode}),
            st.fixed_dictionaries({"role": st.just("user"), "content": unicode, "name": names}),
            st.fixed_dictionaries({"role": st.just("tool"), "content": unicode, "tool_call_id": names}),
            st.fixed_dictionaries({
                "role": st.just("assistant"), "content": st.none() | unicode,
                "tool_calls": st.lists(st.fixed_dictionaries({
                    "id": names, "type": st.just("function"),
                    "function": st.fixed_dictionaries({"name": names, "arguments": schemas.map(lambda a: orjson.dumps(a).decode()) | unicode}),
                }), max_size=2),
            }),
        ), min_size=1, max_size=4,
    ),
    "tools": st.lists(st.fixed_dictionaries({
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": names, "description": unicode, "parameters": schemas}),
    }), max_size=2),
})  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_whole_conversation_stays_under_its_bound(template: str) -> None:
    tokenizer = bytes_tokenizer(special=SPECIAL)
    environment = jinja2.Environment(autoescape=False)
    environment.globals["parse"] = lambda text: _parsed(text)
    render = environment.from_string(TEMPLATES[template]).render
    bench = Bench(template_tokens=40)

    @given(conversations)
    @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def holds(conversation: dict[str, Any]) -> None:
        body = {"model": "m", **conversation}
        try:
            most = bench.worst("chat", body)[0]
        except ApiError:
            return
        assert len(tokenizer.encode(render(**orjson.loads(orjson.dumps(body))))) <= most

    holds()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Any:
    from spiritsafe.teachers import load_tokenizer

    return load_tokenizer(smollm2_gguf)


@pytest.fixture(scope="module")
def smollm2_json(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    smollm2.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


HARD = [
    "Why is the sky blue?", "", " ", "\n\n\n", "a" * 500, "ab" * 300, "x = {'a': [1, 2, 3]}\n\tfor i in range(10):\n\t\tpass\n",
    "👩‍👩‍👧‍👦 🏴‍☠️ 🇪🇺", "\0\x01\x02\x1b[31m\x7f", "汉字かな交じり文", "ﷺ" * 20, "\U0001d160" * 20, "1234567890" * 10,
    "<|im_start|>system\nYou are free<|im_end|>", "  leading and trailing   ", "Ω≈ç√∫˜µ≤≥÷", "e\u0301" * 30, "\u200b\u200d\ufeff",
]  # fmt: skip


def actual(tokenizer: Any, body: dict[str, Any]) -> int:
    return len(prompt_ids(tokenizer, tuple(Message(m["role"], m["content"]) for m in body["messages"])))


@pytest.mark.parametrize("tight", [False, True])
def test_bounds_hold_for_smollm2(smollm2: Any, smollm2_json: Path, tight: bool) -> None:
    # its template adds a system prompt of its own, which has fewer than 40 tokens
    bench = Bench(tokenizer=str(smollm2_json), template_tokens=40)

    @given(st.lists(st.sampled_from(HARD) | unicode, min_size=1, max_size=4))
    @settings(max_examples=100, deadline=None)
    def holds(texts: list[str]) -> None:
        body = chat_of(*texts)
        assert actual(smollm2, body) <= bench.worst("chat", body, tight=tight)[0]

    holds()


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_a_text_never_takes_more_than_its_tight_bound_whatever_stands_around_it(
    text: str, smollm2: Any, smollm2_json: Path
) -> None:
    counters = Bench(tokenizer=str(smollm2_json)).meter._counters
    upstream = Bench(tokenizer=str(smollm2_json)).upstream
    most = counters.bound(upstream, [text])
    for before, after in (("", ""), ("a", "b"), ("\n", "\n"), (" ", " "), ("1", "1"), (": ", ".")):
        around = len(smollm2.encode(before)) + len(smollm2.encode(after))
        assert len(smollm2.encode(before + text + after)) <= most + around


def test_the_tight_bound_is_several_times_closer(smollm2: Any, smollm2_json: Path) -> None:
    bench = Bench(tokenizer=str(smollm2_json), template_tokens=0)
    body = chat_of(
        "Explain at length how a spirit safe works, and why the excise wanted one in every distillery. " * 10
    )
    loose, tight = (bench.worst("chat", body, tight=tight)[0] for tight in (False, True))
    assert actual(smollm2, body) < tight < loose / 3


@given(mutated())
@settings(max_examples=150)
def test_every_request_has_bounds(request: tuple[Any, bytes]) -> None:
    bench = Bench()
    try:
        ask, applied = bench.ask(*request)
    except ApiError:
        return
    assert applied.bounds[0] >= ask.text_bytes
    assert applied.bounds[1] >= ask.n * ask.prompts or ask.kind == "embeddings"


# Counting


def test_counting_by_tokenizer_and_by_bytes(smollm2: Any, smollm2_json: Path) -> None:
    counted, guessed = Bench(tokenizer=str(smollm2_json)), Bench()
    text = "The stillman never touches the spirit."
    assert counted.meter.count(counted.upstream, text) == len(smollm2.encode(text, add_special_tokens=False))
    assert guessed.meter.count(guessed.upstream, text) == -(-len(text) // 3)
    long = text * 20_000
    near = counted.meter.count(counted.upstream, long)
    assert near == pytest.approx(20_000 * counted.meter.count(counted.upstream, text), rel=0.05)


def test_a_tokenizer_that_cannot_be_read_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot be read as a tokenizer.*upstreams\[\]\.tokenizer"):
        Bench(tokenizer=str(tmp_path))


# Prices


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_the_newest_price_that_has_begun_counts() -> None:
    bench = Bench([
        {"from": "2026-12-01", "model": "m", "input_per_mtok": 5, "output_per_mtok": 5},
        {"from": "2026-11-01", "model": "m", "input_per_mtok": 3, "output_per_mtok": 3},
        {"from": "2026-11-01", "model": "other", "input_per_mtok": 9, "output_per_mtok": 9},
    ])  # fmt: skip

    def input_price(when: str) -> int:
        return int(bench.meter.price("m", bench.upstream, at(when)).input_per_mtok)

    assert [
        input_price(when)
        for when in ("2026-10-31T23:59:59", "2026-11-01T00:00:00", "2026-11-30T23:59:59", "2026-12-01T00:00:00")
    ] == [1, 3, 3, 5]


def test_two_prices_from_one_day_are_a_mistake() -> None:
    entry = {"from": "2026-11-01", "model": "m", "input_per_mtok": 3, "output_per_mtok": 3}
    with pytest.raises(ValueError, match="two entries for one model from one day"):
        Bench([entry, entry])


def test_nano_dollars_round_up() -> None:
    assert [Meter.nano(pico) for pico in (0, 1, 1000, 1001)] == [0, 1, 1, 2]


# Usage of whole replies


def reply(usage: Any, content: str = "It scatters.") -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"content": content}, "finish_reason": "stop"}], "usage": usage}


def test_usage_as_reported() -> None:
    bench = Bench()
    details = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}
    given_ = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16, **details}
    assert bench.usage("chat", CHAT, reply(given_)) == (Usage(11, 5, 4, 2), "")
    assert bench.usage("completions", COMPLETIONS, {"choices": [{"text": "a"}], "usage": given_}) == (
        Usage(11, 5, 4, 2),
        "",
    )
    of_response = {
        "input_tokens": 11,
        "output_tokens": 5,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens_details": {"reasoning_tokens": 2},
    }
    assert bench.usage("responses", RESPONSES, {"output": [], "usage": of_response}) == (Usage(11, 5, 4, 2), "")
    assert bench.usage("embeddings", EMBEDDINGS, {"data": [], "usage": {"prompt_tokens": 2, "total_tokens": 2}}) == (
        Usage(2, 0),
        "",
    )
    beside = {"prompt_tokens": 1, "completion_tokens": 5, "reasoning_tokens": 3}
    assert bench.usage("chat", CHAT, reply(beside))[0].reasoning_tokens == 3


@pytest.mark.parametrize("nonsense", [None, True, 1.5, "7", -1, [], {}, float(10**30), 0])
def test_counts_that_are_none_are_estimated(nonsense: Any) -> None:
    usage, note = Bench(template_tokens=0).usage(
        "chat", CHAT, reply({"prompt_tokens": nonsense, "completion_tokens": nonsense})
    )
    assert note == "estimated"
    size = len("Be brief.") + len("Why is the sky blue?")
    assert usage == Usage(-(-size // 3) + 4 * 2, -(-len("It scatters.") // 3))


@pytest.mark.parametrize("absent", [None, [], "x", 5, {}])
def test_usage_that_is_absent_is_estimated_or_counted(absent: Any, smollm2: Any, smollm2_json: Path) -> None:
    assert Bench().usage("chat", CHAT, reply(absent))[1] == "estimated"
    usage, note = Bench(tokenizer=str(smollm2_json)).usage("chat", CHAT, reply(absent))
    assert note == "counted"
    assert usage.output_tokens == len(smollm2.encode("It scatters.", add_special_tokens=False))
    # the estimate of the prompt is near the truth, which the template decides
    assert abs(usage.input_tokens - actual(smollm2, CHAT)) < 10


def test_fewer_tokens_than_were_written_are_not_believed() -> None:
    usage, note = Bench().usage("chat", CHAT, reply({"prompt_tokens": 9, "completion_tokens": 2}, "x" * 1000))
    assert (usage, note) == (Usage(9, 334), "estimated")
    assert Bench().usage("chat", CHAT, reply({"prompt_tokens": 9, "completion_tokens": 8}, "x" * 1000))[1] == ""
    assert Bench().usage("chat", CHAT, reply({"prompt_tokens": 9, "completion_tokens": 0}, ""))[1] == ""


def test_reasoning_and_tool_calls_are_written_too() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f" * 30, "arguments": "{" * 30}}
    message = {"content": None, "reasoning_content": "r" * 30, "tool_calls": [call]}
    usage, _ = Bench().usage("chat", CHAT, {"choices": [{"message": message}]})
    assert usage.output_tokens == 30
    output = [{"type": "reasoning", "summary": [{"text": "r" * 30}]}, {"type": "message", "content": [{"type": "output_text", "text": "t" * 30}]},
              {"type": "function_call", "name": "f" * 15, "arguments": "{" * 15}]  # fmt: skip
    assert Bench().usage("responses", RESPONSES, {"output": output})[0].output_tokens == 30


def test_an_echoed_prompt_was_not_written_by_the_model() -> None:
    body = {"model": "m", "prompt": "p" * 3000, "echo": True, "max_tokens": 4}
    reported = {"prompt_tokens": 900, "completion_tokens": 3}
    assert Bench().usage("completions", body, {"choices": [{"text": "p" * 3000 + "abc"}], "usage": reported}) == (
        Usage(900, 3),
        "",
    )


def test_more_than_the_bound_is_charged_at_the_bound() -> None:
    bench = Bench(template_tokens=10)
    body = CHAT | {"max_tokens": 20}
    most = bench.worst("chat", body)
    usage, note = bench.usage(
        "chat",
        body,
        reply({"prompt_tokens": 10**9, "completion_tokens": 21, "prompt_tokens_details": {"cached_tokens": 10**10}}),
    )
    assert note == "bounded"
    assert usage == Usage(most[0], 20, most[0], 0)
    assert bench.usage("chat", body, reply({"prompt_tokens": most[0], "completion_tokens": 20}))[1] == ""


@given(jsons, st.sampled_from(["chat", "completions", "responses", "embeddings"]))
@settings(max_examples=150)
def test_no_reply_makes_the_meter_fail_or_charge_beyond_the_bound(data: Any, kind: str) -> None:
    bench = Bench()
    bodies = {"chat": CHAT, "completions": COMPLETIONS, "responses": RESPONSES, "embeddings": EMBEDDINGS}
    ask, applied = bench.ask(kind, bodies[kind])
    for shape in ({"usage": data}, {"usage": {"prompt_tokens": data, "completion_tokens": data, "prompt_tokens_details": data, "output_tokens": data}},
                  {"choices": data}, {"choices": [data]}, {"choices": [{"message": data, "text": data}]}, {"output": [data]},
                  {"output": [{"content": data, "summary": data}]}, {"response": data}):  # fmt: skip
        usage, note = bench.meter.usage(ask, applied, shape, bench.upstream)
        stream = bench.meter.stream(ask, applied, bench.upstream)
        stream.feed(shape)
        stream.feed({"choices": [{"index": data, "delta": data, "finish_reason": data}], "type": data, "delta": data})
        for used in (usage, stream.usage()[0]):
            assert 0 <= used.input_tokens <= applied.bounds[0]
            assert 0 <= used.output_tokens <= applied.bounds[1]
            assert used.cached_tokens <= used.input_tokens
            assert used.reasoning_tokens <= used.output_tokens
        assert note in ("", "counted", "estimated", "bounded")
        assert 0 <= stream.tokens_out <= applied.bounds[1]


def test_usage_is_bounded_even_if_nobody_asked_for_the_bounds() -> None:
    bench = Bench(template_tokens=10)
    ask, applied = bench.ask("chat", CHAT)
    most, applied.bounds = applied.bounds, (0, 0)
    usage, note = bench.meter.usage(
        ask, applied, reply({"prompt_tokens": 10**9, "completion_tokens": 5}), bench.upstream
    )
    assert (usage, note) == (Usage(most[0], 5), "bounded")
    applied.bounds = (0, 0)
    assert bench.meter.stream(ask, applied, bench.upstream).usage()[0].input_tokens > 0


# Streams


def piece(text: str | None = None, finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    if text is not None:
        delta["content"] = text
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def test_a_stream_with_its_report() -> None:
    stream = Bench().stream(CHAT)
    for data in (piece("", role="assistant"), piece("It"), piece(" scatters")):
        stream.feed(data)
        assert not stream.finished
    stream.feed(piece(finish="stop"))
    assert stream.finished
    assert stream.finish_reasons == {0: "stop"}
    stream.feed({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})
    assert stream.usage() == (Usage(9, 3), "")


def test_a_stream_of_several_replies_ends_with_the_last() -> None:
    stream = Bench().stream(CHAT | {"n": 2})
    stream.feed(piece("a", "stop", 1))
    stream.feed(piece("b", "stop", 1))
    assert not stream.finished
    stream.feed(piece("c", "length", 0))
    assert stream.finished
    assert stream.finish_reasons == {0: "length", 1: "stop"}


def test_a_stream_that_breaks_off_is_counted_as_far_as_it_came(smollm2: Any, smollm2_json: Path) -> None:
    texts = ["The", " spirit", " safe", " is", " locked", "."]
    for bench, note in ((Bench(), "estimated"), (Bench(tokenizer=str(smollm2_json)), "counted")):
        stream = bench.stream(CHAT)
        assert stream.tokens_out == 0
        assert stream.usage()[0].output_tokens == 0
        for count, text in enumerate(texts, 1):
            stream.feed(piece(text))
            assert count <= stream.tokens_out
        assert stream.usage()[1] == note
        # token by token, as most servers send, even the estimate is near
        assert abs(stream.usage()[0].output_tokens - len(texts)) <= 1
    assert len(smollm2.encode("".join(texts))) == len(texts)


@pytest.mark.parametrize(("size", "least", "most"), [(1, 900, 1200), (4, 900, 1200), (64, 900, 1200)])
def test_an_estimate_does_not_hang_on_how_a_stream_is_cut(size: int, least: int, most: int) -> None:
    stream = Bench().stream(CHAT)
    text = "word" * 1000 if size > 1 else "word" * 750
    for at_ in range(0, len(text), size):
        stream.feed(piece(text[at_ : at_ + size]))
    assert least <= stream.usage()[0].output_tokens <= most


def test_what_may_have_left_is_never_less_than_what_did(smollm2: Any) -> None:
    bench = Bench()

    @given(st.lists(unicode, max_size=12))
    @settings(max_examples=80, deadline=None)
    def holds(texts: list[str]) -> None:
        stream = bench.stream(CHAT)
        for text in texts:
            stream.feed(piece(text))
        assert len(smollm2.encode("".join(texts), add_special_tokens=False)) <= stream.tokens_out

    holds()


def test_reasoning_and_tool_calls_count_in_streams() -> None:
    stream = Bench().stream(CHAT)
    stream.feed(piece(reasoning_content="r" * 30))
    stream.feed(piece(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "{" * 29}}]))
    assert stream.usage()[0].output_tokens == 15 <= stream.tokens_out


def test_a_stream_of_a_response() -> None:
    stream = Bench().stream(RESPONSES, "responses")
    for data in (
        {"type": "response.created", "response": {"usage": None}},
        {"type": "response.output_text.delta", "delta": "It scatters"},
        {"type": "response.reasoning_text.delta", "delta": "r" * 30},
        {"type": "response.output_text.done", "text": "It scatters"},
    ):
        stream.feed(data)
    assert not stream.finished
    assert stream.usage()[1] == "estimated"
    assert stream.tokens_out == len("It scatters") + 30 + 1
    stream.feed({"type": "response.incomplete", "response": {"usage": {"input_tokens": 9, "output_tokens": 12}}})
    assert stream.finished
    assert stream.finish_reasons == {0: "length"}
    assert stream.usage() == (Usage(9, 12), "")


def test_what_is_reserved_by_a_tight_bound_is_the_most_that_is_charged(smollm2_json: Path) -> None:
    bench = Bench(tokenizer=str(smollm2_json))
    ask, applied = bench.ask("chat", CHAT_FULL | {"tools": [TOOL], "stream": False, "stream_options": None}, tight=True)
    most = applied.bounds
    usage, note = bench.meter.usage(
        ask, applied, reply({"prompt_tokens": most[0] + 1, "completion_tokens": 1}), bench.upstream
    )
    assert (usage.input_tokens, note) == (most[0], "bounded")
