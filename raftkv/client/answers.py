"""What nodes answer, and what a problem document in an answer means: no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from raftkv.client.errors import (
    AccessError,
    BusyError,
    CrossShardError,
    DefiniteError,
    DiskFullError,
    InvalidRequestError,
    KeyReusedError,
    NotFoundError,
    PreconditionFailedError,
    RaftkvError,
    ServerError,
    TooLargeError,
    UnavailableError,
    UnknownOutcomeError,
)

_STATUS_SUCCESS = range(200, 300)
_STATUS_NOT_MODIFIED = 304

_ERRORS: dict[str, type[DefiniteError]] = {
    "invalid": InvalidRequestError,
    "method_not_allowed": InvalidRequestError,
    "unsupported_media_type": InvalidRequestError,
    "not_acceptable": InvalidRequestError,
    "too_large": TooLargeError,
    "cross_shard": CrossShardError,
    "key_reused": KeyReusedError,
    "not_found": NotFoundError,
    "unauthorized": AccessError,
    "forbidden": AccessError,
    "busy": BusyError,
    "table_full": BusyError,
    "share_full": BusyError,
    "overloaded": BusyError,
    "disk_full": DiskFullError,
    "no_leader": UnavailableError,
    "unavailable": UnavailableError,
    "moved": UnavailableError,
    "too_stale": UnavailableError,
    "request_timeout": UnavailableError,
    "refused": UnavailableError,
    "timeout": UnavailableError,
    "unknown": UnavailableError,
}
_TRANSIENT = frozenset(
    {
        "busy",
        "table_full",
        "share_full",
        "overloaded",
        "disk_full",
        "no_leader",
        "unavailable",
        "moved",
        "too_stale",
        "request_timeout",
        "timeout",
        "unknown",
    }
)
_CODE_OF_STATUS = {
    400: "invalid",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    412: "precondition",
    413: "too_large",
    429: "busy",
    502: "unknown",
    503: "unknown",
    504: "unknown",
}
"""For answers without a problem document, which come from something between us and the server."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; ``headers`` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    endpoint: str = ""

    @property
    def is_success(self) -> bool:
        """Whether what was asked was done; that nothing has changed since is an answer, too."""
        return self.status in _STATUS_SUCCESS or self.status == _STATUS_NOT_MODIFIED


class Problem(msgspec.Struct, frozen=True):
    """A problem document (RFC 9457), or one result of a batch that failed."""

    code: str
    detail: str = ""
    title: str = ""
    status: int | None = None
    definite: bool = False
    retry_after_ms: int | None = None
    revision: int | None = None
    born_after: int | None = None

    def error(self) -> RaftkvError:
        """The exception that says the same."""
        message = self.detail or self.title or self.code
        if self.code == "precondition":
            return PreconditionFailedError(
                message, status=self.status, current_revision=self.revision
            )
        if not self.definite:
            return UnknownOutcomeError(message, status=self.status)
        return _ERRORS.get(self.code, ServerError)(message, status=self.status)

    @property
    def transient(self) -> bool:
        """Whether trying again may help."""
        return self.code in _TRANSIENT


def problem_of(answer: Answer) -> Problem:
    """Read a problem document; without one only the status speaks, and a 5xx is not definite."""
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        try:
            problem = msgspec.json.decode(answer.body, type=Problem)
        except msgspec.MsgspecError:
            pass  # not ours: judged by its status below, like any other foreign answer
        else:
            return msgspec.structs.replace(problem, status=answer.status)
    refused = 400 <= answer.status < 500  # noqa: PLR2004 -- the class of client errors
    return Problem(
        code=_CODE_OF_STATUS.get(answer.status, "internal"),
        detail=f"HTTP status {answer.status} without a problem document",
        status=answer.status,
        definite=refused,
    )


def retry_after_s(problem: Problem, answer: Answer) -> float:
    """How long the server asks to wait; 0.0 if it does not say."""
    if problem.retry_after_ms is not None:
        return problem.retry_after_ms / 1000
    text: Any = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0
