"""A suspect whose weights lie here: it is read, weighed and asked in this process.

Only safetensors and GGUF are loaded (`load_weights`). One thread drives the model, so that a caller who is cancelled
leaves nothing half done. Of a forward pass only what was asked for is kept: logits are made a few positions at a time.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from spiritsafe.audit._plan import SubjectConfig
from spiritsafe.audit._types import Access
from spiritsafe.errors import BadInput
from spiritsafe.records import Prompt, Reply, Request, Sampling, TeacherInfo
from spiritsafe.teachers import LocalTeacher, TeacherError, Weights, load_weights
from spiritsafe.tokens import prompt_ids
from spiritsafe.train import Head

__all__ = ["WeightsSuspect"]

_BATCH = 32
_PASS_TOKENS = 2048  # padded tokens of a forward pass
_LOGIT_BYTES = 32 << 20  # float32 logits held at once

T = TypeVar("T")


class WeightsSuspect:
    """See `Suspect`. weights: the model itself, for tests that look at it.

    Raises:
        BadInput: nothing loadable at `source`, or not the revision that the plan names.
    """

    access: Access = "weights"
    batch = _BATCH
    concurrency = 1

    def __init__(self, source: str | Weights, subject: SubjectConfig) -> None:
        self.weights = source if isinstance(source, Weights) else load_weights(source, revision=subject.revision)
        self._teacher: LocalTeacher | None = None
        self._head: Head | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="suspect")
        self.info = TeacherInfo(
            model=subject.name,
            revision=self.weights.revision,
            tokenizer_hash=self.weights.tokenizer_hash,
            template_hash=self.weights.template_hash,
        )

    async def read(self, ids_B: Sequence[Sequence[int]]) -> list[list[int]]:
        """See `Suspect.read`.

        Raises:
            TeacherError: ids the model does not have, more of them than its context, or it computes no numbers.
        """
        rows = [list(ids) for ids in ids_B]
        self._check(rows)
        return await self._run(lambda: self._read(rows))

    async def logprob(
        self, prompt_B: Sequence[Prompt], completion_B: Sequence[Sequence[str]]
    ) -> list[list[tuple[float, int]]]:
        """See `Suspect.logprob`. The end of the turn is not part of a completion; an empty one has (0.0, 0).

        Raises:
            TeacherError: the chat template refuses a prompt, one does not fit the context, or as `read`.
        """
        tokenizer = self.weights.tokenizer
        pairs: list[tuple[list[int], list[int]]] = []
        for prompt, completions in zip(prompt_B, completion_B, strict=True):
            before = self._prompt_ids(prompt)
            pairs += [(before, list(tokenizer.encode(text, add_special_tokens=False))) for text in completions]
        self._check([before + after for before, after in pairs])
        sums = iter(await self._run(lambda: self._weigh(pairs)))
        return [[next(sums) for _ in completions] for completions in completion_B]

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> tuple[Reply, ...]:
        """See `Suspect.complete`; replies carry token ids. Calls that run together share the engine's batch.

        Raises:
            TeacherError: the request cannot be run.
        """
        if self._teacher is None:
            try:
                self._teacher = LocalTeacher(self.weights, model=self.info.model, max_batch=_BATCH)
            except BadInput as error:
                raise TeacherError("bad_request", str(error)) from None
        return (await self._teacher.complete(Request(prompt, sampling, n))).replies

    async def aclose(self) -> None:
        if self._teacher is not None:
            await self._teacher.aclose()
        await asyncio.to_thread(functools.partial(self._thread.shutdown, cancel_futures=True))

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        try:
            return prompt_ids(self.weights.tokenizer, prompt.messages)
        except Exception as error:  # templates are programs: they raise what they like
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TeacherError("bad_request", f"the model's chat template refuses these messages: {reason}") from None

    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        vocab, context = self.weights.vocab_size, self.weights.context
        for ids in rows:
            if not 0 < len(ids) <= context:
                raise TeacherError("bad_request", f"{len(ids)} tokens: the suspect's context takes 1 to {context}")
            if min(ids) < 0 or max(ids) >= vocab:
                raise TeacherError("bad_request", f"ids outside the suspect's vocabulary of {vocab}")

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except RuntimeError as error:  # out of memory, above all
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise TeacherError("server", f"the model failed: {reason}") from error

    # ── the model's thread ──

    @torch.inference_mode()
    def _read(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        said: list[list[int]] = [[] for _ in rows]
        for index, hidden_TH in self._states(rows, [0] * len(rows)):
            for logits_NV in self._logits(hidden_TH):
                said[index] += logits_NV.argmax(-1).tolist()
        return said

    @torch.inference_mode()
    def _weigh(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
        sums = [(0.0, 0)] * len(pairs)
        some = [index for index, (_, completion) in enumerate(pairs) if completion]
        rows = [pairs[index][0] + pairs[index][1] for index in some]
        # the state at position t predicts token t + 1; the last token predicts nothing that was asked
        for at, hidden_TH in self._states([row[:-1] for row in rows], [len(pairs[index][0]) - 1 for index in some]):
            completion = pairs[some[at]][1]
            chosen_T = torch.tensor(completion, device=hidden_TH.device)
            total, first = 0.0, 0
            for logits_NV in self._logits(hidden_TH):
                chosen_N = chosen_T[first : first + len(logits_NV)]
                picked_N = logits_NV.gather(-1, chosen_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
                total += float(picked_N.double().sum())
                first += len(logits_NV)
            sums[some[at]] = (total, len(completion))
        return sums

    def _states(self, rows: Sequence[Sequence[int]], first: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """(index, hidden states (T - first, H)) of each row, rows of like length together."""
        device = self.weights.device
        for batch in _batches([len(row) for row in rows]):
            longest = len(rows[batch[0]])
            # padded on the right, behind everything that counts: causality alone keeps it out
            padded = [[*rows[i], *[rows[i][-1]] * (longest - len(rows[i]))] for i in batch]
            hidden_BTH = self.weights.model.base_model(
                input_ids=torch.tensor(padded, device=device), use_cache=False
            ).last_hidden_state
            for place, index in enumerate(batch):
                yield index, hidden_BTH[place, first[index] : len(rows[index])]

    def _logits(self, hidden_TH: Tensor) -> Iterator[Tensor]:
        """Float32 logits over the real vocabulary, a few positions at a time."""
        if self._head is None:
            self._head = Head.of(self.weights.model, self.weights.vocab_size)
        if not bool(hidden_TH.isfinite().all()):
            raise TeacherError("malformed", "the model computes no finite numbers here")
        step = max(1, _LOGIT_BYTES // (4 * self._head.vocab))
        for at in range(0, len(hidden_TH), step):
            yield self._head.logits(hidden_TH[at : at + step])


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices, longest first, cut where a forward pass is full or padding would cost more than another pass saves."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        longest = lengths[batch[0]] if batch else 0
        if batch and ((len(batch) + 1) * longest > _PASS_TOKENS or longest > 1.25 * lengths[index] + 16):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
