"""What a tokenizer is: its identity (hashes), its tokens as bytes, its chat template."""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from typing import Any

from spiritsafe.records import Message

__all__ = ["prompt_ids", "template_hash", "token_bytes_table", "tokenizer_hash"]

_BYTE_TOKEN = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary (token → id) and the special tokens: equal hashes mean equal ids for equal text."""
    vocab = sorted(tokenizer.get_vocab().items())
    special = [tokenizer.bos_token, tokenizer.eos_token]
    return hashlib.sha256(json.dumps([vocab, special], ensure_ascii=False).encode()).hexdigest()


def template_hash(tokenizer: Any) -> str:
    """SHA-256 of the chat template; of the empty string where there is none."""
    return hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()


def token_bytes_table(tokenizer: Any) -> list[bytes]:
    """The bytes each token id stands for, index = id; special tokens as the UTF-8 of their name.

    Covers byte-level BPE (GPT-2's byte alphabet) and SentencePiece with byte fallback.
    """
    vocab: dict[str, int] = tokenizer.get_vocab()
    size = max(vocab.values()) + 1
    table = [b""] * size
    special = set(tokenizer.all_special_tokens) | {
        str(t) for t in getattr(tokenizer, "added_tokens_decoder", {}).values()
    }
    alphabet = _byte_alphabet()
    byte_level = not any(_BYTE_TOKEN.match(t) for t in vocab) and "Ġ" in "".join(list(vocab)[:5000])
    for token, index in vocab.items():
        if token in special:
            table[index] = token.encode()
        elif match := _BYTE_TOKEN.match(token):
            table[index] = bytes([int(match[1], 16)])
        elif byte_level and all(c in alphabet for c in token):
            table[index] = bytes(alphabet[c] for c in token)
        else:
            table[index] = token.replace("▁", " ").encode()
    return table


def prompt_ids(tokenizer: Any, messages: tuple[Message, ...]) -> list[int]:
    """Token ids of a conversation, through the chat template, ready for the assistant's turn.

    A tokenizer without a template gets the contents joined by newlines.
    """
    if tokenizer.chat_template:
        rendered = tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages], add_generation_prompt=True, tokenize=False
        )
        return list(tokenizer.encode(rendered, add_special_tokens=False))
    return list(tokenizer.encode("\n".join(m.content for m in messages) + "\n"))


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    mapping = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    return mapping | {chr(256 + i): b for i, b in enumerate(others)}
