"""What the training tests share: a byte-level tokenizer, a two-layer teacher and exchanges between them."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from spiritsafe.exchanges import write_exchanges
from spiritsafe.records import Exchange, Message, Prompt, Reply, Sampling, SparseLogprobs, TeacherInfo, Usage
from spiritsafe.runs import Run
from spiritsafe.tokens import template_hash, tokenizer_hash

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> Any:
    """Byte-level BPE with a few merges, 300-odd tokens, ChatML template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_trained(), eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@cache
def _trained() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and that was that"] * 20, trainer)
    return tokenizer


def tiny_model(vocab: int, layers: int = 2, seed: int = 0, tie: bool = True, **more: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tie,
        initializer_range=0.2,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=2,
        **more,
    )
    return LlamaForCausalLM(config)


def exchange(
    text: str,
    *,
    question: str = "say it",
    finish_reason: Any = "stop",
    tokenizer_hash: str | None = None,
    template_hash: str | None = None,
    token_ids: tuple[int, ...] | None = None,
    logprobs: SparseLogprobs | None = None,
    index: int = 0,
    split: Any = "train",
) -> Exchange:
    return Exchange(
        request_hash=f"{index:064x}",
        sample=index,
        prompt=Prompt((Message("user", question),)),
        reply=Reply(text, finish_reason, token_ids, logprobs),
        sampling=Sampling(max_tokens=16, logprobs=0 if logprobs is None else logprobs.top.shape[1]),
        usage=Usage(8, 8),
        usd=0.0,
        teacher=TeacherInfo("tiny", tokenizer_hash=tokenizer_hash, template_hash=template_hash),
        split=split,
    )


def random_targets(rows: int, k: int, vocab: int, seed: int = 0) -> SparseLogprobs:
    """A real top-k of random distributions."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, vocab)) * 3
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ids = np.argsort(-logp, axis=1)[:, :k]
    top = np.take_along_axis(logp, ids, axis=1)
    return SparseLogprobs(top[:, 0].astype(np.float32), top.astype(np.float32), ids=ids.astype(np.int32))


def save_tiny(folder: Path, layers: int = 4, pad: int = 0, seed: int = 0) -> Path:
    """A Hugging Face folder with a tiny model and its tokenizer."""
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer) + pad, layers, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def training_run(path: Path, n: int = 24, logprobs: int = 6, known: bool = True, seed: int = 0) -> Run:
    """A run with `n` curated exchanges of varied length, and a holdout exchange that must never train."""
    tokenizer = tiny_tokenizer()
    rng = random.Random(seed)
    words = ["the", " cat", " sat", " on", " mat", " and", " that", " was", "?", " zebra"]
    run = Run.open(path)
    exchanges = []
    for i in range(n):
        text = "".join(rng.choices(words, k=rng.randint(1, 9)))
        ids = (*tokenizer.encode(text, add_special_tokens=False), 2)
        targets = random_targets(len(ids), logprobs, len(tokenizer), seed=i) if logprobs else None
        exchanges.append(
            exchange(
                text,
                question=f"say {i}",
                tokenizer_hash=tokenizer_hash(tokenizer) if known else None,
                template_hash=template_hash(tokenizer) if known else None,
                token_ids=ids,
                logprobs=targets,
                index=i,
            )
        )
    exchanges.append(exchange("held out", index=n, split="holdout"))
    write_exchanges(run.curated, exchanges)
    return run
