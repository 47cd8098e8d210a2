"""Batches: many operations in few requests, and only those sent again that need it.

A shard remembers a bounded number of outcomes for each session, and all operations of a request
stay remembered until the request is answered. So every request of a batch has a session to itself
while it is under way, and is small enough for it.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

import msgspec

from raftkv.client import codec
from raftkv.client.answers import Problem
from raftkv.client.attempts import RESEND_WINDOW_S, backoff_s
from raftkv.client.calls import Call, Caller
from raftkv.client.checks import check_batch
from raftkv.client.clock import boot_s
from raftkv.client.errors import (
    PreconditionFailedError,
    RaftkvError,
    UnavailableError,
    UnknownOutcomeError,
)
from raftkv.client.session import Session, SessionPool, Ticket
from raftkv.client.types import BatchOperation, Bytes, Get, OperationResult, to_bytes

BatchResult = OperationResult | RaftkvError
"""What became of one operation of a batch."""

PIECE_OPERATIONS = 1000
PIECE_BYTES = 4 * 2**20
OPERATION_BYTES = 160
"""What an operation takes beside its key and value, generously."""


def run_batch(
    caller: Caller,
    sessions: SessionPool | None,
    operations: Sequence[BatchOperation],
    timeout_s: float,
) -> list[BatchResult]:
    """Send ``operations``; see :meth:`raftkv.client.Client.batch`.

    Raises:
        InvalidRequestError, TypeError: One of them makes no sense; nothing was sent.
    """
    check_batch(operations)
    deadline = boot_s() + timeout_s
    results: list[BatchResult] = []
    for piece in _pieces(operations):
        try:
            results += _run_piece(caller, sessions, piece, deadline)
        except RaftkvError as error:
            if not results:
                raise
            # What was answered must not be lost; what was not sent is as definite as can be.
            results += [error] * len(piece)
            left = len(operations) - len(results)
            results += [UnavailableError(f"not sent, after: {error}")] * left
            break
    return results


def _pieces(operations: Sequence[BatchOperation]) -> Iterator[Sequence[BatchOperation]]:
    """Cut a batch into requests that servers take."""
    start = size = 0
    for place, operation in enumerate(operations):
        value: Bytes = getattr(operation, "value", b"")
        bytes_now = OPERATION_BYTES + _length(operation.key) + _length(value)
        if place > start and (place - start == PIECE_OPERATIONS or size + bytes_now > PIECE_BYTES):
            yield operations[start:place]
            start, size = place, 0
        size += bytes_now
    if start < len(operations):
        yield operations[start:]


def _length(data: Bytes) -> int:
    """At most how many bytes it has; text is not encoded for this."""
    return 4 * len(data) if isinstance(data, str) else len(to_bytes(data))


def _run_piece(
    caller: Caller,
    sessions: SessionPool | None,
    operations: Sequence[BatchOperation],
    deadline: float,
) -> list[BatchResult]:
    with contextlib.ExitStack() as stack:
        session = None if sessions is None else stack.enter_context(sessions.borrow())
        return _Batch(caller, session, stack, operations).run(deadline)


class _Batch:
    """The rounds of one batch. Operation ``i`` has sequence ``ticket.first + i`` in all of them.

    Its ticket is the same in all, but if it was refused for its session before any of its copies
    can have been applied. Tickets are kept open by ``stack``.
    """

    def __init__(
        self,
        caller: Caller,
        session: Session | None,
        stack: contextlib.ExitStack,
        operations: Sequence[BatchOperation],
    ) -> None:
        self._caller = caller
        self._session = session
        self._stack = stack
        self._operations = operations
        self._began_s = boot_s()
        first = None if session is None else stack.enter_context(session.writes(len(operations)))
        self._tickets: list[Ticket | None] = [first] * len(operations)
        self._results: list[BatchResult] = [None] * len(operations)
        self._unknown: set[int] = set()
        self._fresh: Ticket | None = None

    def run(self, deadline: float) -> list[BatchResult]:
        waiting = list(range(len(self._operations)))
        rounds = 0
        while True:
            try:
                failed = self._round(waiting, deadline)
            except RaftkvError as error:
                if rounds == 0:
                    raise
                for place in waiting:
                    self._results[place] = self._error(place, error)
                return self._results
            rounds += 1
            waiting = [place for place, problem in failed.items() if self._again(place, problem)]
            asked_ms = max((failed[place].retry_after_ms or 0 for place in waiting), default=0)
            pause_s = backoff_s(rounds, asked_ms / 1000)
            last_s = min(deadline, self._began_s + RESEND_WINDOW_S)
            if not waiting or boot_s() + pause_s >= last_s:
                return self._results
            time.sleep(pause_s)
            if boot_s() >= last_s:  # this machine was suspended in the pause
                return self._results

    def _round(self, places: Sequence[int], deadline: float) -> dict[int, Problem]:
        """Send the operations at these places; return what failed.

        Reads that together are too much for an answer are sent again in smaller requests.
        """
        failed = self._send(places, deadline - boot_s())
        reads = [place for place in places if isinstance(self._operations[place], Get)]
        too_much = [p for p in reads if p in failed and failed[p].code == "too_large"]
        if len(places) == 1 or not too_much:
            return failed
        fitted = len(reads) - len(too_much)
        size = fitted or (len(too_much) + 1) // 2
        for start in range(0, len(too_much), size):
            part = too_much[start : start + size]
            for place in part:
                del failed[place]
            try:
                failed |= self._round(part, deadline)
            except RaftkvError as error:  # what was answered before must not be lost
                for place in part:
                    self._results[place] = self._error(place, error)
        return failed

    def _send(self, places: Sequence[int], timeout_s: float) -> dict[int, Problem]:
        """Send one request; return what failed of it."""
        chosen = [self._operations[place] for place in places]
        reads = all(isinstance(operation, Get) for operation in chosen)
        body = codec.batch_body([self._member(place) for place in places])
        call = Call(
            "POST",
            "/v1/batch",
            headers=lambda: {"Content-Type": codec.MSGPACK, "Accept": codec.MSGPACK},
            body=body,
            reads=reads,
            repeatable=reads or self._session is not None,
        )
        answer, exposed = self._caller.run_exposed(call, timeout_s)
        if exposed:
            self._unknown.update(p for p in places if not isinstance(self._operations[p], Get))
        failed = {}
        for place, result in zip(places, codec.batch_results(answer, len(places)), strict=True):
            if isinstance(result, Problem):
                problem = self._judged(place, result)
                failed[place] = problem
                self._results[place] = self._error(place, problem.error())
            else:
                self._results[place] = result
        return failed

    def _member(self, place: int) -> dict[str, object]:
        session, ticket = None, self._tickets[place]
        if ticket is not None:
            session = {
                "id": ticket.session,
                "sequence": ticket.first + place,
                "low": ticket.low,
                "born": ticket.born,
            }
        return codec.batch_member(self._operations[place], session)

    def _judged(self, place: int, problem: Problem) -> Problem:
        """A failed read changed nothing, whatever the server says of the batch it was in."""
        if isinstance(self._operations[place], Get):
            return msgspec.structs.replace(problem, definite=True)
        if problem.born_after is not None and self._renew(place, problem.born_after):
            return msgspec.structs.replace(problem, code="unavailable", definite=True)
        if not problem.definite and problem.code != "precondition":
            self._unknown.add(place)
        return problem

    def _renew(self, place: int, born_after: int) -> bool:
        """Begin another session for an operation of which no copy can have been applied.

        See :data:`raftkv.client.attempts.RESEND_WINDOW_S` for why that is known.
        """
        ticket = self._tickets[place]
        is_old = boot_s() - self._began_s > RESEND_WINDOW_S
        if self._session is None or ticket is None or place in self._unknown or is_old:
            return False
        if ticket.born > born_after:
            return False
        if self._fresh is None or self._fresh.born <= born_after:
            writes = self._session.writes(len(self._operations), born_after)
            self._fresh = self._stack.enter_context(writes)
        self._tickets[place] = self._fresh
        return True

    def _error(self, place: int, error: RaftkvError) -> RaftkvError:
        """What the caller may believe of one operation after all rounds so far."""
        read = isinstance(self._operations[place], Get)
        if isinstance(error, UnknownOutcomeError) and read:
            return Problem(code="unknown", detail=str(error), definite=True).error()
        if place in self._unknown and not isinstance(
            error, UnknownOutcomeError | PreconditionFailedError
        ):
            return UnknownOutcomeError(f"{error}, after an attempt of unknown outcome")
        return error

    def _again(self, place: int, problem: Problem) -> bool:
        """Whether sending the operation again can help and cannot harm."""
        repeatable = self._session is not None or isinstance(self._operations[place], Get)
        return problem.transient and (repeatable or problem.definite)
