"""What is still to be asked: prompts × samples, less what the store holds already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from spiritsafe.collect._config import CollectConfig
from spiritsafe.collect._store import Known
from spiritsafe.records import Prompt, Request, Sampling, TeacherInfo

__all__ = ["Job", "identity", "jobs_of", "next_job", "tokens_bound", "unanswered"]

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
    """What a stored answer is filed under besides the request: the same model name elsewhere is another teacher."""
    return f"{teacher.model}@{teacher.host or 'local'}#{teacher.revision or ''}"


def jobs_of(
    prompt: Prompt, config: CollectConfig, teacher: str, known: Mapping[str, Known]
) -> Iterator[tuple[Job, Known | None]]:
    """The requests that together give all samples of a prompt, as far as is known yet.

    One request asks for all samples. A teacher that gives fewer is asked again for the rest, so what comes after a
    request depends on how many replies it brought; the last one yielded may have no answer yet.
    """
    start = 0
    while start < config.samples:
        job = _job(prompt, config, teacher, start, config.samples - start)
        held = known.get(job.hash)
        yield job, held
        if held is None or held.state != "answered":
            return
        start += held.replies


def next_job(job: Job, replies: int, config: CollectConfig, teacher: str) -> Job | None:
    """The request for the samples that `job` asked for and did not get."""
    start = job.start + replies
    if start >= config.samples:
        return None
    return _job(job.request.prompt, config, teacher, start, config.samples - start)


def tokens_bound(request: Request) -> tuple[int, int]:
    """Most tokens in and out that a request can use.

    No tokenizer is needed: byte-level and byte-fallback vocabularies never make more tokens than UTF-8 has bytes.
    """
    messages = request.prompt.messages
    size = sum(len(m.content.encode("utf-8", "surrogatepass")) for m in messages)
    return size + _PER_MESSAGE * len(messages) + _TEMPLATE, request.n * request.sampling.max_tokens


def _job(prompt: Prompt, config: CollectConfig, teacher: str, start: int, n: int) -> Job:
    sampling = Sampling(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=None if config.seed is None else _seed(config.seed, prompt.id, start),
        stop=config.stop,
        logprobs=config.logprobs,
    )
    request = Request(prompt, sampling, n)
    return Job(request, start, request.hash(teacher))


def _seed(base: int, prompt_id: str, start: int) -> int:
    digest = hashlib.sha256(f"{base}:{prompt_id}:{start}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def unanswered(found: Sequence[tuple[Job, Known | None]]) -> Job | None:
    """The last job of a prompt if it has no answer yet."""
    job, held = found[-1]
    return None if held is not None and held.state == "answered" else job
