"""From a stored answer to exchanges: one row a reply, costs and tokens divided so that they add up to the bill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from spiritsafe.collect._jobs import Job
from spiritsafe.collect._prompts import Split
from spiritsafe.collect._store import Store
from spiritsafe.records import Exchange, Reply, TeacherInfo, Usage
from spiritsafe.spend import dollars
from spiritsafe.wire import parse_completion

__all__ = ["Terms", "exchanges_of"]


class Terms(Protocol):
    """Under which terms the teacher answers; each exchange carries them."""

    @property
    def terms_id(self) -> str: ...

    @property
    def terms_version(self) -> str: ...


def exchanges_of(
    store: Store, job: Job, teacher: TeacherInfo, splits: Mapping[str, Split], terms: Terms | None
) -> Iterator[Exchange]:
    """The exchanges of an answered request.

    Raises:
        BadInput: its answer in the store is damaged.
    """
    paid = store.paid(job.hash)
    if paid is None:
        return
    read = parse_completion(paid.raw)
    replies, reported = read.replies[: job.request.n], read.model
    if read.tokenizer_hash is not None:
        teacher = replace(teacher, tokenizer_hash=read.tokenizer_hash, template_hash=read.template_hash)
    extra = {} if paid.origin is None else {"reused_from": paid.origin}
    if reported not in ("", teacher.model):
        extra["model_reported"] = reported
    prompt, sampling = job.request.prompt, job.request.sampling
    if sampling.seed != paid.seed:  # asked again after a bad answer
        sampling = replace(sampling, seed=paid.seed)
    for index, (reply, usage) in enumerate(zip(replies, _divide(paid.usage, replies), strict=True)):
        yield Exchange(
            request_hash=job.hash,
            sample=job.start + index,
            prompt=prompt,
            reply=reply,
            sampling=sampling,
            usage=usage,
            usd=dollars(_share(paid.pico, len(replies), index)),
            teacher=teacher,
            split=splits.get(prompt.id, "train"),
            terms_id="unknown" if terms is None else terms.terms_id,
            terms_version="" if terms is None else terms.terms_version,
            watermark_key_id=read.watermark_key_id,
            created=datetime.fromtimestamp(paid.ended, UTC).isoformat(timespec="seconds"),
            extra=extra,
        )


def _divide(usage: Usage, replies: tuple[Reply, ...]) -> Iterator[Usage]:
    """A call's usage among its replies: output by their token counts where those are known, the rest evenly."""
    if len(replies) == 1:
        yield usage
        return
    counts = [_length(reply) for reply in replies]
    exact = None not in counts and sum(c for c in counts if c is not None) == usage.output_tokens
    for index, count in enumerate(counts):
        share = [
            _share(total, len(replies), index)
            for total in (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens)
        ]
        if exact and count is not None:
            share[1] = count
        yield Usage(*share)


def _length(reply: Reply) -> int | None:
    if reply.token_ids is not None:
        return len(reply.token_ids)
    return None if reply.logprobs is None else len(reply.logprobs)


def _share(total: int, parts: int, index: int) -> int:
    return total // parts + (index < total % parts)
