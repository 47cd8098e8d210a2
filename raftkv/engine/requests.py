"""One request on its way through the router: where it stands and what may truthfully be said.

A request may be tried several times: the leader moves, links break, queues are full. What it is
finally answered depends on what may have happened in the tries before.
"""

from collections.abc import Callable
from typing import cast

from raftkv.core.operations import Command, Refused
from raftkv.raft.proposals import GroupFailure
from raftkv.raft.reads import Voucher
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
    Failure,
    FailureCode,
    GetRequest,
    Request,
    Response,
    Served,
    WriteRequest,
)

Answer = Callable[[Response, Served], None]

RETRY_AFTER_MS = 200
"""What a client is told to wait when a queue is full or a shard has no leader."""

_CODES: dict[str, FailureCode] = {
    "not_leader": "no_leader",
    "busy": "busy",
    "disk_full": "disk_full",
    "too_large": "too_large",
    "discarded": "unavailable",
    "stopping": "unavailable",
    "refused": "refused",
    "unknown": "unknown",
}


def failure_of(failure: GroupFailure) -> Failure:
    """Translate what a group gave in place of a result; the only place that does."""
    retry = RETRY_AFTER_MS if failure.reason in {"not_leader", "busy", "discarded"} else None
    detail = failure.detail or "this node does not lead the shard"
    return Failure(_CODES[failure.reason], detail, failure.definite, retry)


def is_write(request: Request) -> bool:
    """Whether the request may change something."""
    if isinstance(request, BatchRequest):
        return any(isinstance(operation, Command) for operation in request.operations)
    return isinstance(request, WriteRequest)


def may_repeat(request: Request) -> bool:
    """Whether doing it again does no harm: reads, and writes with an idempotency key."""
    if isinstance(request, WriteRequest):
        return request.command.idempotency is not None
    if isinstance(request, BatchRequest):
        return all(
            isinstance(operation, GetRequest) or operation.idempotency is not None
            for operation in request.operations
        )
    return True


class Pending:
    """A request for one shard that is not answered yet.

    ``done`` runs exactly once. ``started`` and ``deadline`` are in monotonic seconds.
    """

    __slots__ = (
        *("_answer", "answered", "deadline", "exposed", "hops", "link", "request", "request_id"),
        *("sent", "shard", "started", "voucher"),
    )

    def __init__(
        self,
        request: Request,
        shard: int,
        *,
        started: float,
        deadline: float,
        hops: int,
        answer: Answer,
        request_id: str = "",
        voucher: Voucher | None = None,
    ) -> None:
        self.request = request
        self.request_id = request_id
        self.shard = shard
        self.started = started
        self.deadline = deadline
        self.hops = hops
        self.voucher = voucher
        self._answer = answer
        self.answered = False
        self.sent = False
        """A leader has it now, here or elsewhere, and has not answered."""
        self.exposed = False
        """An earlier try may have been applied: nothing said later can be definite."""
        self.link: str | None = None
        """The peer to whose link it waits for its turn; nothing of it has left then."""

    def finish(self, response: Response, served: Served) -> None:
        """Answer, truthfully with regard to the tries before."""
        if self.answered:
            return
        self.answered = True
        self._answer(_not_definite(response) if self.exposed else response, served)

    def lost(self) -> bool:
        """Note that a try ended without an answer; whether it may be tried again."""
        self.sent = False
        if is_write(self.request):
            self.exposed = True
        return may_repeat(self.request)

    def timed_out(self) -> Failure:
        """Say what is known when the time is up."""
        if not is_write(self.request):
            why = "" if self.sent else f": shard {self.shard} has no reachable leader"
            return Failure("timeout", f"no answer in time{why}", definite=True)
        if self.sent or self.exposed:
            return Failure("timeout", "no answer in time; the write may or may not be applied")
        if self.link is not None:
            return link_busy(self.link)
        detail = f"shard {self.shard} has no reachable leader"
        return Failure("no_leader", detail, definite=True, retry_after_ms=RETRY_AFTER_MS)


def link_busy(peer: str) -> Failure:
    """Say that a request has not left this node, for all that waits to leave before it."""
    detail = f"too much waits for the link to {peer}"
    return Failure("busy", detail, definite=True, retry_after_ms=RETRY_AFTER_MS)


def _not_definite(response: Response) -> Response:
    """What may be said after an earlier try that may have been applied."""
    if isinstance(response, BatchResult):
        results = tuple(_not_definite(result) for result in response.results)
        return BatchResult(cast("tuple[Failure, ...]", results))
    if isinstance(response, Refused) and response.reason in {
        "table_full",
        "share_full",
        "moved",
        "forgotten",
    }:
        # The shard says so of this try; it does not speak for the one before.
        return Failure(
            "unknown", f"an earlier try may have been applied; the last: {response.reason}"
        )
    if isinstance(response, Failure) and response.definite:
        detail = f"an earlier try may have been applied; the last one: {response.detail}"
        return Failure("unknown", detail)
    return response
