"""A real server over local weights, in this process, on a free loopback port; and tiny models to serve."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spiritsafe.teachers._app import app_for
from spiritsafe.teachers._local import LocalTeacher
from spiritsafe.teachers._server import bind, serve_app

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models on one core: with more threads than free cores, each operation waits at a barrier."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: 256 bytes and three special tokens (ids 256–258), so any text has ids and any ids have bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = TEMPLATE
    return fast


def save_tiny_model(folder: Path, *, padded_rows: int = 13, context: int = 256, seed: int = 0, **config: Any) -> Path:
    """A random two-layer Llama whose head is padded beyond the real vocabulary, saved with its tokenizer."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            **{
                "vocab_size": len(tokenizer) + padded_rows,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": context,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "initializer_range": 0.4,
                **config,
            }
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def serving(model_dir: Path | str | LocalTeacher, *, max_batch: int = 32, **app: Any) -> Iterator[str]:
    """Serve in a thread; yields the base URL (ending in /v1). `app`: `model_name`, `api_key`, `max_logprobs`, `log`."""
    teacher = model_dir if isinstance(model_dir, LocalTeacher) else LocalTeacher(model_dir, max_batch=max_batch)
    ready: list[str] = []
    up = threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        event = asyncio.Event()
        stop.append((asyncio.get_running_loop(), event))
        await serve_app(app_for(teacher, **app), listener, lambda url: (ready.append(url), up.set()), event)

    with contextlib.closing(bind("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        try:
            assert up.wait(60), "the server did not start"
            yield ready[0]
        finally:
            loop, event = stop[0]
            loop.call_soon_threadsafe(event.set)
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"
