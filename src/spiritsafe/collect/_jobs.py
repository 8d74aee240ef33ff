"""What is still to be asked: prompts × samples, less what the store holds already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from spiritsafe.collect._config import CollectConfig
from spiritsafe.collect._store import Known
from spiritsafe.records import Prompt, Request, Sampling, TeacherInfo

__all__ = ["Job", "Questions", "identity", "tokens_bound"]

_PER_MESSAGE = 16  # role markers and separators around a message
_TEMPLATE = 256  # what a chat template adds by itself: a default system prompt, a date, tool headers


@dataclass(slots=True, eq=False)
class Job:
    """One request to be asked: samples `start` … `start + request.n - 1` of a prompt."""

    request: Request
    start: int
    hash: str
    failures: int = 0  # that may pass: 429, 5xx, timeouts
    bad: int = 0  # answers that could not be kept

    def attempt(self) -> Request:
        """The request as it is sent next: after a bad answer with another seed, or the same would come back."""
        sampling = self.request.sampling
        if self.bad == 0 or sampling.seed is None:
            return self.request
        return replace(self.request, sampling=replace(sampling, seed=(sampling.seed + 7919 * self.bad) % 2**31))


def identity(teacher: TeacherInfo) -> str:
    """What a stored answer is filed under besides the request: the same model name elsewhere is another teacher, and
    one that marks gives other answers than one that does not."""
    marks = f"+{teacher.marks}" if teacher.marks else ""
    return f"{teacher.model}@{teacher.host or 'local'}#{teacher.revision or ''}{marks}"


class Questions:
    """Which requests give all samples of a prompt, as far as is known yet.

    One request asks for all samples. A teacher that gives fewer is asked again for the rest, so what comes after a
    request depends on how many replies it brought.
    """

    def __init__(self, config: CollectConfig, teacher: TeacherInfo) -> None:
        self._config = config
        self._identity = identity(teacher)
        self._jobs: dict[tuple[Prompt, int], Job] = {}

    def of(self, prompt: Prompt, known: Mapping[str, Known]) -> Iterator[tuple[Job, Known | None]]:
        """The prompt's requests and what is known of them; the last one may have no answer yet."""
        start = 0
        while start < self._config.samples:
            job = self._job(prompt, start)
            held = known.get(job.hash)
            yield job, held
            if held is None or held.state != "answered":
                return
            start += held.replies

    def open(self, prompt: Prompt, known: Mapping[str, Known]) -> Job | None:
        """The request that has to be asked next for a prompt; None if all its samples are there."""
        *_, (job, held) = self.of(prompt, known)
        return None if held is not None and held.state == "answered" else job

    def after(self, job: Job, replies: int) -> Job | None:
        """The request for the samples that `job` asked for and did not get."""
        start = job.start + replies
        return None if start >= self._config.samples else self._job(job.request.prompt, start)

    def _job(self, prompt: Prompt, start: int) -> Job:
        job = self._jobs.get((prompt, start))
        if job is None:
            config = self._config
            sampling = Sampling(
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                seed=None if config.seed is None else _seed(config.seed, prompt.id, start),
                stop=config.stop,
                logprobs=config.logprobs,
            )
            request = Request(prompt, sampling, config.samples - start)
            job = self._jobs[prompt, start] = Job(request, start, request.hash(self._identity))
        return job


def tokens_bound(request: Request) -> tuple[int, int]:
    """Most tokens in and out that a request can use.

    No tokenizer is needed: byte-level and byte-fallback vocabularies never make more tokens than UTF-8 has bytes.
    """
    messages = request.prompt.messages
    size = sum(len(m.content.encode("utf-8", "surrogatepass")) for m in messages)
    return size + _PER_MESSAGE * len(messages) + _TEMPLATE, request.n * request.sampling.max_tokens


def _seed(base: int, prompt_id: str, start: int) -> int:
    digest = hashlib.sha256(f"{base}:{prompt_id}:{start}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
