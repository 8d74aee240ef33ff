"""Tiny weights behind an API that gives log-probabilities of text it is given, in the two ways that servers have."""

from __future__ import annotations

from typing import Any

import torch
from aiohttp import web

from mock_api import Behaviour, Body, completion
from spiritsafe.records import Message
from spiritsafe.teachers import Weights
from spiritsafe.tokens import prompt_ids

__all__ = ["chat_way", "echo_way", "without"]


@torch.inference_mode()
def _says(weights: Weights, ids: list[int]) -> list[float | None]:
    says = weights.model(torch.tensor([ids])).logits[0, :, : weights.vocab_size].log_softmax(-1)
    return [None, *(float(says[t, token]) for t, token in enumerate(ids[1:]))]


def echo_way(weights: Weights) -> Behaviour:
    """`/completions` with `echo`; chat takes no `prompt_logprobs`."""

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if not request.path.endswith("/completions") or "prompt" not in body:
            if "prompt_logprobs" in body:
                return web.json_response({"error": {"message": "unknown field prompt_logprobs"}}, status=400)
            return web.json_response(completion(body))
        assert body["echo"] and body["max_tokens"] == 1
        tokenizer = weights.tokenizer
        ids = tokenizer.encode(body["prompt"], add_special_tokens=False)
        values = [*_says(weights, ids), -0.5]  # the token that it had to make
        tokens = [tokenizer.convert_ids_to_tokens(i) for i in ids] + ["!"]
        said = {"tokens": tokens, "token_logprobs": values, "text_offset": list(range(len(tokens)))}
        choice = {"index": 0, "text": body["prompt"] + "!", "finish_reason": "length", "logprobs": said}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return web.json_response({"model": body["model"], "choices": [choice], "usage": usage})

    return behave


def chat_way(weights: Weights) -> Behaviour:
    """`/chat/completions` with `prompt_logprobs`, as vLLM has it."""

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if "prompt_logprobs" not in body:
            return web.json_response(completion(body))
        messages = [Message(m["role"], m["content"]) for m in body["messages"]]
        ids = list(prompt_ids(weights.tokenizer, tuple(m for m in messages if m.role != "assistant")))
        if body.get("continue_final_message"):
            assert body["add_generation_prompt"] is False and messages[-1].role == "assistant"
            ids += weights.tokenizer.encode(messages[-1].content, add_special_tokens=False)
        rows: list[Any] = [
            None if value is None else {str(token): {"logprob": value, "rank": 1, "decoded_token": "?"}}
            for token, value in zip(ids, _says(weights, ids), strict=True)
        ]
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return web.json_response(completion(body, "!") | {"prompt_logprobs": rows, "usage": usage})

    return behave


def without(how: str) -> Behaviour:
    """An API that has neither way, and shows it by `how`."""

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if "prompt_logprobs" not in body and "prompt" not in body:
            return web.json_response(completion(body))
        if how == "refused":
            return web.json_response({"error": {"message": "unknown field"}}, status=400)
        if how == "missing":
            return web.json_response({"error": {"message": "no such page"}}, status=404)
        asked = {"messages": [{"content": "x"}]} | body
        if how == "ignored":
            return web.json_response(completion(asked))
        if how == "garbage":
            return web.Response(text="<html>", content_type="application/json")
        count = 3 + len(str(asked).split())
        if how == "constant":
            said = {"tokens": [str(i) for i in range(count)], "token_logprobs": [None, *[-1.0] * (count - 1)]}
        else:  # null: tokens, but no numbers
            said = {"tokens": [str(i) for i in range(count)], "token_logprobs": [None] * count}
        choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": said}
        usage = {"prompt_tokens": count, "completion_tokens": 1}
        return web.json_response({"model": "m", "choices": [choice], "usage": usage})

    return behave
