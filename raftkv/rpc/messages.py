"""What a front end asks of its engine and what it is answered; engines forward with the same.

Every request carries the time that is left for it; every answer is either a result or a
:class:`Failure`, and says who served it. A failure is *definite* when the operation is known not
to have been applied and never to be applied later; saying so wrongly is a safety bug, so the
default is not definite.
"""

from typing import Annotated, Literal, Self, TypeVar

import msgspec

from raftkv.core.operations import Command, GetResult, Key, KeyValue, Outcome, RangeResult
from raftkv.status.durations import HTTP_BOUNDS_S

Consistency = Literal["linearizable", "stale"]

F = TypeVar("F")
_encode = msgspec.msgpack.Encoder().encode

_BUCKETS = len(HTTP_BOUNDS_S) + 1
HttpCounts = Annotated[tuple[int, ...], msgspec.Meta(min_length=_BUCKETS, max_length=_BUCKETS)]


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Base of everything that is encoded by this module."""


# --- requests --------------------------------------------------------------------------------


class GetRequest(Message, tag=1, frozen=True):
    """Read one key. ``max_age_ms`` goes with ``stale`` only and bounds the age of the answer."""

    key: Key
    consistency: Consistency = "linearizable"
    max_age_ms: int | None = None


class ScanRequest(Message, tag=2, frozen=True):
    """Read ``start <= key < end`` over all shards, in key order, at most ``limit`` entries.

    Linearizable per shard; not a snapshot of all shards. ``shard`` is set by engines, where one
    shard is asked for its share of a page; it answers with a :class:`ScanPart`.
    """

    start: bytes
    end: bytes | None
    limit: int
    keys_only: bool = False
    consistency: Consistency = "linearizable"
    max_age_ms: int | None = None
    bytes_max: int = 2**20
    shard: int | None = None


class WriteRequest(Message, tag=3, frozen=True):
    """Apply one command: a put, delete or single-shard transaction."""

    command: Command


class BatchRequest(Message, tag=4, frozen=True):
    """Many independent operations; each succeeds or fails by itself, results in order.

    ``shard`` is set between engines, where all operations are of one shard. ``bytes_max`` bounds
    the keys and values that are read: a get beyond it fails by itself.
    """

    operations: tuple[Command | GetRequest, ...]
    shard: int | None = None
    bytes_max: int = 32 * 2**20


class StatusRequest(Message, tag=5, frozen=True):
    """Ask for facts.

    ``local``: about this node alone; never asks a peer, works without quorum. ``cluster``: about
    all nodes; asks peers, says which did not answer. ``ready``: which readiness checks fail.
    """

    scope: Literal["local", "cluster", "ready"]


class ExplainRequest(Message, tag=6, frozen=True):
    """Where does ``key`` live and why."""

    key: Key


PINNED_S_MAX = 366 * 86_400.0
"""The longest time for which a leadership may be put somewhere: a year."""


class TransferRequest(Message, tag=7, frozen=True):
    """Hand the leadership of ``shard`` to ``target`` (None: the preferred node).

    On a ``target`` it stays for ``for_s`` seconds, or until that node stops (None).
    """

    shard: int
    target: str | None = None
    for_s: float | None = None


class Answered(Message, frozen=True):
    """How many requests of a route an HTTP worker has answered with a status."""

    route: str
    status: int
    count: int


class Took(Message, frozen=True):
    """How long a route's answers took: counts by ``status.durations.HTTP_BOUNDS_S``."""

    route: str
    counts: HttpCounts
    sum_s: float


class WorkerReport(Message, tag=8, frozen=True):
    """What an HTTP worker has answered since its last report; its engine adds it up.

    ``second``: the second of Unix time in which that was. The rest is how the worker is now.
    """

    worker: int
    pid: int
    second: int
    in_flight: int
    body_bytes: int
    cpu_s: float
    rss_bytes: int
    answered: tuple[Answered, ...]
    durations: tuple[Took, ...]
    log_lines_dropped: int = 0


Request = (
    GetRequest
    | ScanRequest
    | WriteRequest
    | BatchRequest
    | StatusRequest
    | ExplainRequest
    | TransferRequest
    | WorkerReport
)


def may_write(request: Request) -> bool:
    """Tell whether losing the answer to ``request`` leaves its outcome unknown."""
    if isinstance(request, BatchRequest):
        return any(isinstance(operation, Command) for operation in request.operations)
    return isinstance(request, WriteRequest | TransferRequest)


class Call(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """A request on a pipelined connection. ``remaining_ms``: give up after this long.

    ``request_id`` is what the client or its front end calls the request; it goes into logs.
    ``term`` is that of the shard's group at the node that forwards, if this holds a replica: it
    vouches that no newer leader is known there (:class:`raftkv.raft.reads.Voucher`).
    """

    id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    remaining_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)]
    request: Request
    map_epoch: int = 0
    hops: int = 0
    request_id: Annotated[str, msgspec.Meta(max_length=64)] = ""
    term: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


# --- answers ---------------------------------------------------------------------------------


class Served(Message, frozen=True):
    """Who answered: node name, shard (None if several or none), the group's term.

    ``age_ms``: for stale reads, how old the data may be at most by the follower's own clock, None
    if no leader has confirmed recently enough to say.
    """

    node: str
    shard: int | None = None
    term: int | None = None
    age_ms: int | None = None


FailureCode = Literal[
    "no_leader",  # 503: no leader reachable within the deadline; nothing was sent
    "busy",  # 429: a queue is full; retry later
    "unavailable",  # 503: shutting down, starting, or the replica cannot serve this now
    "timeout",  # 504: outcome unknown if it was a write
    "unknown",  # 504: outcome unknown (link lost, leader lost after proposing)
    "disk_full",  # 507: refused before it reached the log
    "too_large",  # 413: larger than an entry may be
    "cross_shard",  # 422: the keys of a transaction, or of a range in it, are on several shards
    "moved",  # 503: the map changed under the request; retry
    "too_stale",  # 503: no local data within max_age_ms
    "not_found",  # 404: no such shard or node
    "refused",  # 409: a transfer that cannot be done now, with the reason in detail
    "invalid",  # 400: a request that makes no sense, with the reason in detail
    "internal",  # 500: a bug; logged with its trace
]


class Failure(Message, tag=20, frozen=True):
    """The request did not succeed. ``definite``: it was not applied and never will be.

    The router makes it of a group's :class:`raftkv.raft.proposals.GroupFailure`, or of what it
    finds itself; the front end makes a problem document of it. The whole way stands in
    docs/architecture.md, "How a refusal travels".
    """

    code: FailureCode
    detail: str
    definite: bool = False
    retry_after_ms: int | None = None


BatchItemResult = Outcome | GetResult | Failure


class BatchResult(Message, tag=21, frozen=True):
    """One result per operation of the batch, in its order."""

    results: tuple[BatchItemResult, ...]


class ScanPart(Message, tag=23, frozen=True):
    """A shard's share of a page: the first entries of the range, at one moment, as far as they fit.

    ``next_key`` is the first key that did not, with the size that its entry has alone, in bytes;
    None: the shard has no more in the range. There may be no entries at all, with a next key: one
    large value of each shard would be many times a page.
    """

    entries: tuple[KeyValue, ...]
    next_key: bytes | None = None
    next_bytes: int = 0


class Facts(Message, tag=22, frozen=True):
    """What operators are told: a value of :mod:`raftkv.status.facts`, as MessagePack."""

    encoded: bytes
    """Its own copy: a view of what was received would change with the next frame."""

    @classmethod
    def of(cls, value: object) -> Self:
        """Encode a value."""
        return cls(_encode(value))

    def read(self, kind: type[F]) -> F:
        """Return the value.

        Raises:
            msgspec.ValidationError: It is of another kind.
        """
        return msgspec.msgpack.decode(self.encoded, type=kind)


Response = Outcome | GetResult | RangeResult | Failure | BatchResult | ScanPart | Facts


class Reply(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """The answer to the :class:`Call` with the same ``id``."""

    id: int
    response: Response
    served: Served
    map_epoch: int = 0
