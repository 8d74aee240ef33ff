"""Valid requests of every kind, small and with everything in them, and mutations of them."""

from __future__ import annotations

import copy
from typing import Any

import orjson
from hypothesis import strategies as st

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather at a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        "strict": True,
    },
}
CHAT_FULL: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}], "name": "dev"},
        {"role": "user", "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
        ]},
        {"role": "assistant", "content": None, "refusal": None, "audio": None, "annotations": [], "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Islay"}'}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "assistant", "content": "It rains.", "reasoning_content": "The tool says so."},
        {"role": "user", "content": "And tomorrow?"},
    ],
    "n": 2, "max_completion_tokens": 100, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["\n\n", "END"],
    "frequency_penalty": 0.1, "presence_penalty": -0.1, "logit_bias": {"50": -100}, "logprobs": True,
    "top_logprobs": 5, "stream": True, "stream_options": {"include_usage": True}, "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "weather"}}, "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}},
    "reasoning_effort": "low", "verbosity": "low", "user": "u1", "safety_identifier": "s1", "metadata": {"a": "b"},
    "service_tier": "auto", "store": False, "modalities": ["text"], "prompt_cache_key": "k",
    "prompt_cache_retention": "24h", "prediction": {"type": "content", "content": "It rains."},
    "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "chat_template_kwargs": {"enable_thinking": False},
    "ignore_eos": False, "min_tokens": 0, "stop_token_ids": [2], "skip_special_tokens": True,
    "continue_final_message": False, "add_generation_prompt": True, "use_beam_search": False, "best_of": 1,
    "return_token_ids": False, "echo_none": None,
}  # fmt: skip
del CHAT_FULL["echo_none"]
COMPLETIONS: dict[str, Any] = {"model": "m", "prompt": "Once upon a time"}
COMPLETIONS_FULL: dict[str, Any] = {
    "model": "m", "prompt": ["Once", "Twice"], "suffix": "the end", "max_tokens": 16, "n": 3, "logprobs": 2,
    "echo": False, "temperature": 0, "stream": False, "user": "u", "stop": "\n",
}  # fmt: skip
RESPONSES: dict[str, Any] = {"model": "m", "input": "Why is the sky blue?"}
RESPONSES_FULL: dict[str, Any] = {
    "model": "m", "instructions": "Be brief.", "max_output_tokens": 50, "store": False, "stream": True,
    "stream_options": {"include_obfuscation": False}, "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}, "verbosity": "low"},
    "include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 3,
    "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}],
    "tool_choice": "auto", "truncation": "disabled", "temperature": 1, "background": False,
    "input": [
        {"role": "user", "content": "Hello"},
        {"type": "message", "role": "assistant", "id": "m1", "status": "completed",
         "content": [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}]},
        {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "Greets"}], "encrypted_content": "zz"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "rain"}]},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "And now?"},
            {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"},
        ]},
    ],
}  # fmt: skip
EMBEDDINGS: dict[str, Any] = {"model": "m", "input": ["one", "two"], "encoding_format": "float", "dimensions": 64}

VALID: list[tuple[str, dict[str, Any]]] = [
    ("chat", CHAT),
    ("chat", CHAT_FULL),
    ("completions", COMPLETIONS),
    ("completions", COMPLETIONS_FULL),
    ("responses", RESPONSES),
    ("responses", RESPONSES_FULL),
    ("embeddings", EMBEDDINGS),
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), texts,
    st.sampled_from([0, 1, -1, 129, "", "text", "user", "auto", "<think>", "http://a/b"]),
)  # fmt: skip
jsons = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


def _paths(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(path for key, item in inner for path in _paths(item, (*at, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid request with up to four places changed: kind and body."""
    kind, body = draw(st.sampled_from(VALID))
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(0, 4))):
        paths = [path for path in _paths(body) if path]
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        holder: Any = body
        for key in path[:-1]:
            holder = holder[key]
        change = draw(st.sampled_from(["value", "delete", "add", "nest"]))
        if change == "value":
            holder[path[-1]] = draw(jsons)
        elif change == "delete":
            del holder[path[-1]]
        elif change == "nest":
            holder[path[-1]] = [holder[path[-1]]]
        elif isinstance(holder, dict):
            holder[draw(texts)] = draw(jsons)
        else:
            holder.append(draw(jsons))
    return kind, orjson.dumps(body)
