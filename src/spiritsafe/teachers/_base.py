"""The seam between a stage and whatever answers: an API or local weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from spiritsafe.errors import SpiritsafeError
from spiritsafe.records import Reply, Request, TeacherInfo, Usage

__all__ = ["Answer", "Teacher", "TeacherError"]

Kind = Literal["auth", "bad_request", "rate_limited", "server", "timeout", "network", "malformed"]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What came back for one `Request`: its n replies and what the call used.

    watermark_key_id: the key that the teacher says it marked the replies with.
    raw: the answer's body as an API sent it, where there is one.
    usage_reported: False if the API did not say what the call used; `usage` is then zero and means nothing.
    """

    replies: tuple[Reply, ...]
    usage: Usage
    model: str
    raw: bytes | None = None
    usage_reported: bool = True
    watermark_key_id: str | None = None


class TeacherError(SpiritsafeError):
    """A call that brought no usable answer.

    kind: what to do about it. `auth` and `bad_request` are final; the others may be tried again.
    retry_after: seconds the teacher asked us to wait, if it did.
    billed: the teacher may have charged for it (a malformed answer, a timeout), so the reservation stands.
    """

    def __init__(self, kind: Kind, message: str, *, retry_after: float | None = None, billed: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after
        self.billed = billed

    @property
    def transient(self) -> bool:
        return self.kind not in ("auth", "bad_request")


class Teacher(Protocol):
    """Something that answers requests. Safe to call concurrently from one event loop."""

    @property
    def info(self) -> TeacherInfo: ...

    async def complete(self, request: Request) -> Answer:
        """Answer one request.

        Raises:
            TeacherError: no usable answer; says whether trying again may help.
        """

    async def aclose(self) -> None: ...
