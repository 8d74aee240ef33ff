"""Exchanges as token ids: what the student sees, what it should say, and what the teacher thought at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritsafe.records import Exchange, SparseLogprobs
from spiritsafe.tokens import prompt_ids, token_bytes_table, tokenizer_hash

__all__ = ["Example", "Vocabulary", "encode_exchange"]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One exchange in the student's token ids.

    prompt_ids: (P,) int32, through the chat template.  completion_ids: (C,) int32, with the end-of-turn token
    when the teacher ended its turn.
    targets: the teacher's top-k at the C completion positions with `ids` set, or None. A row that is all -1 carries
    no teacher distribution (only the token itself is known); its `chosen` is NaN when the teacher did not tell.
    """

    id: str
    prompt_ids: NDArray[np.int32]
    completion_ids: NDArray[np.int32]
    targets: SparseLogprobs | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """The student's tokenizer with its inverse: bytes → id. Bytes that several ids share are left out.

    end_of_turn: the id that closes an assistant's turn under the chat template; the eos token without a template.
    """

    tokenizer: Any
    hash: str
    ids: dict[bytes, int]
    end_of_turn: int

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        table = token_bytes_table(tokenizer)
        special = set(tokenizer.all_special_ids)
        ids: dict[bytes, int] = {}
        ambiguous: set[bytes] = set()
        for index, token in enumerate(table):
            if not token or index in special:
                continue
            if ids.setdefault(token, index) != index:
                ambiguous.add(token)
        for token in ambiguous:
            del ids[token]
        # A special token is known by its name, whatever else is spelt like it.
        ids |= {table[index]: index for index in special if index < len(table)}
        return cls(tokenizer, tokenizer_hash(tokenizer), ids, _end_of_turn(tokenizer))

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def encode_exchange(exchange: Exchange, vocabulary: Vocabulary) -> Example:
    """Turn an exchange into ids of `vocabulary`.

    The teacher's own token ids are kept when its tokenizer is the student's. Where only bytes came back (an API's
    logprobs) they are resolved to ids; bytes the vocabulary does not hold as one token are re-tokenised and train on
    cross-entropy alone, and alternatives it does not hold count as tail mass. Otherwise the text is re-tokenised.
    """
    reply, teacher_hash = exchange.reply, exchange.teacher.tokenizer_hash
    ids: list[int] | None = None
    targets: SparseLogprobs | None = None
    if teacher_hash == vocabulary.hash and reply.token_ids is not None:
        ids = list(reply.token_ids)
        if reply.logprobs is not None and len(ids) - len(reply.logprobs) in (0, 1):
            targets = _resolved(reply.logprobs, vocabulary)
    elif teacher_hash in (None, vocabulary.hash) and reply.logprobs is not None:
        ids, targets = _from_bytes(reply.logprobs, vocabulary)
    if ids is None:
        ids = vocabulary.encode(reply.text)
    # A stop string also reports "stop", and then the turn had not ended.
    ended = reply.finish_reason == "stop" and not exchange.sampling.stop
    if ended and (not ids or ids[-1] != vocabulary.end_of_turn):
        ids.append(vocabulary.end_of_turn)
    if targets is not None and len(targets) < len(ids):
        targets = _place(targets, range(len(targets)), len(ids))
    prompt = prompt_ids(vocabulary.tokenizer, exchange.prompt.messages)
    return Example(exchange.id, np.asarray(prompt, np.int32), np.asarray(ids, np.int32), targets)


def _from_bytes(logprobs: SparseLogprobs, vocabulary: Vocabulary) -> tuple[list[int] | None, SparseLogprobs | None]:
    """Ids and targets from a reply whose tokens are known by their bytes only; (None, None) if that fails."""
    if logprobs.token_bytes is None:
        return None, None
    ids: list[int] = []
    positions: list[int] = []  # where each row of `logprobs` lands among the ids; -1: nowhere
    for token in logprobs.token_bytes:
        known = vocabulary.ids.get(token)
        if known is not None:
            positions.append(len(ids))
            ids.append(known)
            continue
        positions.append(-1)
        try:
            ids += vocabulary.encode(token.decode())
        except UnicodeDecodeError:
            return None, None
    resolved = _resolved(logprobs, vocabulary)
    return ids, None if resolved is None else _place(resolved, positions, len(ids))


def _resolved(logprobs: SparseLogprobs, vocabulary: Vocabulary) -> SparseLogprobs | None:
    """`logprobs` with ids, alternatives without one dropped; None if it names no alternatives."""
    if logprobs.ids is not None or logprobs.top_bytes is None:
        return logprobs if logprobs.ids is not None and logprobs.ids.shape[1] else None
    top = np.full(logprobs.top.shape, -np.inf, np.float32)
    ids = np.full(logprobs.top.shape, -1, np.int32)
    for row, tokens in enumerate(logprobs.top_bytes):
        found = [vocabulary.ids.get(token, -1) for token in tokens]
        first = {i: j for j, i in reversed(list(enumerate(found))) if i >= 0}
        kept = sorted(first.values())
        ids[row, : len(kept)] = [found[j] for j in kept]
        top[row, : len(kept)] = logprobs.top[row, kept]
    return SparseLogprobs(logprobs.chosen, top, ids)


def _place(logprobs: SparseLogprobs, positions: Sequence[int], length: int) -> SparseLogprobs:
    """Row i of `logprobs` at `positions[i]` (-1: nowhere) of a completion of `length`; other rows know nothing."""
    assert logprobs.ids is not None
    rows = [i for i, position in enumerate(positions) if position >= 0]
    landed = [positions[i] for i in rows]
    chosen = np.full(length, np.nan, np.float32)
    top = np.full((length, logprobs.top.shape[1]), -np.inf, np.float32)
    ids = np.full((length, logprobs.top.shape[1]), -1, np.int32)
    chosen[landed], top[landed], ids[landed] = logprobs.chosen[rows], logprobs.top[rows], logprobs.ids[rows]
    return SparseLogprobs(chosen, top, ids)


def _end_of_turn(tokenizer: Any) -> int:
    """Some templates close a turn with another token than `eos_token` (Gemma); read it off a rendered turn."""
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "\x00"}]
        rendered = tokenizer.apply_chat_template(turn, tokenize=False)
        closing = tokenizer.encode(rendered.rpartition("\x00")[2].lstrip(), add_special_tokens=False)
        if closing and closing[0] in set(tokenizer.all_special_ids):
            return int(closing[0])
    return int(tokenizer.eos_token_id)
