"""Errors as ``application/problem+json`` (RFC 9457), with the one extra fact that matters here.

``definite: true`` says that the operation was not applied and never will be. Everything that
this module refuses by itself is definite because it never left the front end.
"""

import math
from typing import Any, NamedTuple

import msgspec

from raftkv.core.operations import Refused
from raftkv.rpc.messages import Failure
from raftkv.web.api.exchange import Header, HttpResponse

_TYPE_PREFIX = "urn:raftkv:problem:"
_PROBLEM_TYPE = (b"content-type", b"application/problem+json")
_NO_STORE = (b"cache-control", b"no-store")


class _Kind(NamedTuple):
    status: int
    title: str
    retry_after_ms: int | None = None


KINDS: dict[str, _Kind] = {
    # refused by the front end, before any engine saw it
    "invalid": _Kind(400, "The request makes no sense"),
    "unauthorized": _Kind(401, "A valid token is needed"),
    "forbidden": _Kind(403, "The token's role does not allow this"),
    "key_not_found": _Kind(404, "The key does not exist"),
    "method_not_allowed": _Kind(405, "The method is not allowed here"),
    "not_acceptable": _Kind(406, "None of the acceptable answers can be given"),
    "request_timeout": _Kind(408, "The request body came too slowly"),
    "misdirected": _Kind(421, "The request is meant for another host"),
    "head_too_large": _Kind(431, "The header fields are too large"),
    "unsupported_media_type": _Kind(415, "The content type or coding is not understood"),
    "overloaded": _Kind(503, "This HTTP worker is full", 1000),
    # refused by the state machine
    "precondition": _Kind(412, "The condition does not hold"),
    "key_reused": _Kind(422, "The idempotency key belongs to another request"),
    "table_full": _Kind(429, "No room for another idempotency key", 1000),
    "share_full": _Kind(429, "No room for another idempotency key of this client", 1000),
    "forgotten": _Kind(409, "The session or the outcome in it was forgotten"),
    # failures of the engine
    "no_leader": _Kind(503, "The shard has no leader now", 500),
    "busy": _Kind(429, "A queue is full", 1000),
    "unavailable": _Kind(503, "The node cannot serve this now", 1000),
    "timeout": _Kind(504, "No answer in time"),
    "unknown": _Kind(504, "The outcome is unknown"),
    "disk_full": _Kind(507, "The disk is full", 5000),
    "too_large": _Kind(413, "Too large"),
    "cross_shard": _Kind(422, "The keys live on several shards"),
    "moved": _Kind(503, "The key has moved to another group", 100),
    "too_stale": _Kind(503, "No local data is young enough", 1000),
    "not_found": _Kind(404, "There is no such thing"),
    "refused": _Kind(409, "This cannot be done now"),
    "internal": _Kind(500, "A bug; the server's log has the trace"),
}

_REFUSAL_DETAILS = {
    "moved": "the group does not own this key any more; ask again",
    "key_reused": "another request was made under the same idempotency key",
    "table_full": "the shard remembers as many idempotency keys as it may",
    "share_full": "this token and address have their share of the idempotency keys that the shard"
    " remembers; its sessions go on",
    "forgotten": "the sequence is below the session's low watermark",
    "too_large": "the transaction could read more than an answer may hold; nothing was written",
}


class HttpError(Exception):
    """A request that is refused; carries all that its problem document says.

    Made of what the engine answered (:func:`from_refusal`, :func:`from_failure`), or of what the
    front end found itself.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        definite: bool = True,
        headers: tuple[Header, ...] = (),
        retry_after_ms: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.definite = definite
        self.headers = headers
        kind = KINDS[code]
        self.status = kind.status
        self.retry_after_ms = kind.retry_after_ms if retry_after_ms is None else retry_after_ms
        self.extra = extra or {}

    def document(self) -> dict[str, Any]:
        """Return the members of the problem document; a batch puts them into its results."""
        members: dict[str, Any] = {
            "type": _TYPE_PREFIX + self.code,
            "title": KINDS[self.code].title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "definite": self.definite,
        }
        if self.retry_after_ms is not None:
            members["retry_after_ms"] = self.retry_after_ms
        members.update(self.extra)
        return members

    def response(self, served: tuple[Header, ...]) -> HttpResponse:
        """Return the response; ``served`` are the headers that say who answers."""
        body = msgspec.json.encode(self.document())
        headers = [
            _PROBLEM_TYPE,
            _NO_STORE,
            (b"content-length", b"%d" % len(body)),
            *served,
            *self.headers,
        ]
        if self.retry_after_ms is not None:
            seconds = max(1, math.ceil(self.retry_after_ms / 1000))
            headers.append((b"retry-after", b"%d" % seconds))
        return HttpResponse(self.status, headers, body)


def invalid(detail: str) -> HttpError:
    """Return the error for a request that makes no sense."""
    return HttpError("invalid", detail)


def from_refusal(refused: Refused) -> HttpError:
    """Translate a refusal by the state machine.

    ``forgotten`` alone is not definite: this copy of the request was not applied, but one before
    it may have been, and nobody remembers. ``born_after`` says which sessions would be let in.
    """
    headers: tuple[Header, ...] = ()
    extra: dict[str, Any] = {}
    if refused.reason == "precondition":
        extra["revision"] = refused.current_revision
        if refused.current_revision is None:
            detail = "the key does not exist"
        else:
            detail = f"the key exists, with revision {refused.current_revision}"
            headers = ((b"etag", b'"%d"' % refused.current_revision),)
    elif refused.reason == "forgotten" and refused.current_revision is not None:
        extra["born_after"] = refused.current_revision
        detail = (
            f"the session is not known here, and one born up to {refused.current_revision} may have"
            " been forgotten: begin another one, if this write was never sent before"
        )
    else:
        detail = _REFUSAL_DETAILS[refused.reason]
    return HttpError(
        refused.reason,
        detail,
        definite=refused.reason != "forgotten",
        headers=headers,
        extra=extra,
    )


def from_failure(failure: Failure, *, read: bool) -> HttpError:
    """Translate a failure of the engine; a read never changed anything, so it is definite."""
    return HttpError(
        failure.code,
        failure.detail,
        definite=read or failure.definite,
        retry_after_ms=failure.retry_after_ms,
    )
