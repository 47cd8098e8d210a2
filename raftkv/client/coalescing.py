"""Concurrent calls of single keys travel together, as transactions do in a group commit.

While fewer than two requests are in flight, a call goes out at once by itself. Calls that come
later queue up, and the next request takes all of them as one batch. So nobody waits for a timer,
and the busier a client is, the larger its batches are.

There is no thread for this. A calling thread sends the batch that its own call is in, gives the
others in it their outcomes, and hands its right to send to the first in the queue: nobody sends
others' calls after its own is answered.

What is shared is one *attempt*. Retries, pauses, the deadline and what a caller may believe in the
end stay its own, in :meth:`raftkv.client.calls.Caller.repeat`, as though it had gone alone; a write
keeps its own number in the session, whichever way each attempt goes. Only what can be repeated
travels together: the answer that is lost with a batch is lost for all in it.

What is merged here is also divided: one that is too large in the company of the others goes again
by itself, as do all of a batch that is refused for one of them.

Linearizability is not touched. A batch is sent after each call in it began and answered before that
call ends, and the server does each operation of it by itself at a moment in between: a linearizable
read sees what was acknowledged before it began, and a write that goes again under its number takes
effect once, before its call returns. Where an outcome stays unknown the write may also take effect
later, as it may alone. The operations of a batch have no order among them, and need none: a thread
waits for one call before it makes the next, so whatever shares a batch was called concurrently.
"""

import os
import threading
from collections.abc import Callable
from enum import Enum, auto

from raftkv.client import codec
from raftkv.client.answers import Answer, Problem
from raftkv.client.attempts import FailedAttempt, failure_of_problem
from raftkv.client.calls import Call, Caller
from raftkv.client.clock import boot_s
from raftkv.client.errors import RaftkvError, ServerError, UnavailableError, UnknownOutcomeError
from raftkv.client.session import Ticket
from raftkv.client.types import OperationResult

IN_FLIGHT_MAX = 2
"""Requests in flight at once. While the servers have one the client makes up the next; more of
them would carry less each, and a request costs everybody much beside what it carries."""

BATCH_OPERATIONS_MAX = 256
BATCH_BYTES_MAX = 2**20
"""Of keys and values in one batch."""

MEMBER_BYTES_MAX = 2**16
"""What is larger goes alone: sharing its request would cost others more time than it saves."""

QUEUED_S_MAX = 0.1
"""A call that queued this long is sent at once. Where a request waits, for a shard without a leader
perhaps, the others then do not wait for it one after another."""

_HEADERS = {"Content-Type": codec.MSGPACK, "Accept": codec.MSGPACK}

Outcome = OperationResult | FailedAttempt
Alone = Callable[[float], Outcome]
"""Makes one attempt by a request of its own, given the deadline."""


class _State(Enum):
    QUEUED = auto()
    LEADING = auto()
    """It has the right to send, and must use it or hand it on."""
    SENT = auto()
    ANSWERED = auto()


class _Waiter:
    """One attempt of one call. ``woken`` is held until it is answered or is to lead."""

    __slots__ = ("alone", "member", "outcome", "state", "ticket", "woken")

    def __init__(self, member: codec.Member, ticket: Ticket | None) -> None:
        self.member = member
        self.ticket = ticket
        self.state = _State.QUEUED
        self.outcome: Outcome = None
        self.alone = False
        self.woken = threading.Lock()
        self.woken.acquire()

    def answer(self, outcome: Outcome) -> None:
        """Give it its outcome; the last to be done to it."""
        self.outcome = outcome
        self.state = _State.ANSWERED
        self.woken.release()


class _Queue:
    """What the threads of one process share. The lock guards all of it and the waiters' states."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.in_flight = 0
        # A dict for its order: who comes first is sent first; who gives up leaves from anywhere.
        self.waiting: dict[_Waiter, None] = {}

    def enter(self, waiter: _Waiter) -> None:
        """Lead at once if another request may be sent, else queue."""
        with self.lock:
            if self.in_flight < IN_FLIGHT_MAX:
                self.in_flight += 1
                waiter.state = _State.LEADING
            else:
                self.waiting[waiter] = None

    def lead_if_queued(self, waiter: _Waiter) -> None:
        """It has waited for long: send beside what is in flight."""
        with self.lock:
            if waiter.state is _State.QUEUED:
                del self.waiting[waiter]
                self.in_flight += 1
                waiter.state = _State.LEADING

    def fill(self, batch: list[_Waiter]) -> None:
        """Add to the leader as many from the queue as a batch takes."""
        size = batch[0].member.size
        with self.lock:
            for waiter in self.waiting:
                size += waiter.member.size
                if len(batch) == BATCH_OPERATIONS_MAX or size > BATCH_BYTES_MAX:
                    break
                batch.append(waiter)
            for waiter in batch[1:]:
                del self.waiting[waiter]
                waiter.state = _State.SENT

    def hand_on(self) -> None:
        """Give the right to send to the first in the queue."""
        with self.lock:
            self.in_flight -= 1
            if self.waiting and self.in_flight < IN_FLIGHT_MAX:
                first = next(iter(self.waiting))
                del self.waiting[first]
                self.in_flight += 1
                first.state = _State.LEADING
                first.woken.release()

    def leave(self, waiter: _Waiter) -> None:
        """Hold nothing any more that another call waits for."""
        with self.lock:
            self.waiting.pop(waiter, None)
        if waiter.state is _State.LEADING:
            self.hand_on()


class Coalescer:
    """Lets the single-key calls of one client travel together."""

    def __init__(self, caller: Caller, *, attempt_timeout_s: float) -> None:
        self._caller = caller
        self._attempt_timeout_s = attempt_timeout_s
        self._queue = _Queue()

    def run(
        self, member: codec.Member, ticket: Ticket | None, alone: Alone, timeout_s: float
    ) -> OperationResult:
        """Carry out one operation; a write has a ticket, a read has none.

        Raises:
            RaftkvError: As the same operation alone.
        """
        refused_together = False

        def attempt(deadline: float) -> Outcome:
            nonlocal refused_together
            # With less time left than an attempt may take it would cut that of the others short.
            has_time = deadline - boot_s() >= self._attempt_timeout_s
            if refused_together or not has_time or member.size > MEMBER_BYTES_MAX:
                return alone(deadline)
            waiter = _Waiter(member, ticket)
            self._together(waiter, alone, deadline)
            if waiter.alone:
                refused_together = True
                return alone(deadline)
            return waiter.outcome

        reads = ticket is None
        renew = (lambda _: False) if ticket is None else ticket.renew
        return self._caller.repeat(attempt, timeout_s, reads=reads, repeatable=True, renew=renew)[0]

    def _together(self, waiter: _Waiter, alone: Alone, deadline: float) -> None:
        queue = self._queue
        if queue.pid != os.getpid():
            # Nothing of the parent of a fork is ever answered here. Should two threads of the child
            # come here at once, each has a queue that works, and one of them is left for good.
            queue = self._queue = _Queue()
        try:
            queue.enter(waiter)
            if waiter.state is not _State.LEADING:
                _wait(queue, waiter, deadline)
            if waiter.state is _State.LEADING:
                self._lead(queue, waiter, alone, deadline)
        finally:
            # Also where this thread is interrupted: the others must not wait for it.
            queue.leave(waiter)
        if waiter.state is _State.SENT:
            waiter.outcome = _lost(waiter, "no answer in time")

    def _lead(self, queue: _Queue, leader: _Waiter, alone: Alone, deadline: float) -> None:
        batch = [leader]
        outcomes: list[Outcome] | None = None
        try:
            queue.fill(batch)
            outcomes = [alone(deadline)] if len(batch) == 1 else self._send(batch, deadline)
        finally:
            if outcomes is None:
                outcomes = [_lost(p, "the thread that sent it was interrupted") for p in batch]
            leader.outcome = outcomes[0]
            for waiter, outcome in zip(batch[1:], outcomes[1:], strict=True):
                waiter.answer(outcome)

    def _send(self, batch: list[_Waiter], deadline: float) -> list[Outcome]:
        lows: dict[str, int] = {}
        for waiter in batch:
            ticket, member = waiter.ticket, waiter.member
            if ticket is not None and not isinstance(member, codec.GetMember):
                low = lows.get(ticket.session)
                if low is None:
                    low = lows[ticket.session] = ticket.low
                # One that has just given up no longer holds the watermark down.
                member.session = codec.Numbered(
                    ticket.session, ticket.first, min(low, ticket.first), ticket.born
                )
        call = Call(
            "POST",
            "/v1/batch",
            headers=lambda: _HEADERS,
            body=codec.members_body([waiter.member for waiter in batch]),
            reads=not lows,
            repeatable=True,
        )
        answer = self._caller.attempt(call, deadline)
        if isinstance(answer, FailedAttempt):
            return [_share_of(answer, waiter) for waiter in batch]
        return self._outcomes(batch, answer)

    def _outcomes(self, batch: list[_Waiter], answer: Answer) -> list[Outcome]:
        try:
            results = codec.batch_results(answer, len(batch))
        except ServerError as error:
            return [_not_ours(waiter, error) for waiter in batch]
        outcomes: list[Outcome] = []
        is_refused = False
        for waiter, result in zip(batch, results, strict=True):
            if isinstance(result, Problem):
                # Perhaps only because of what travelled with it: an answer holds so much.
                waiter.alone = result.code == "too_large"
                failure = failure_of_problem(
                    result,
                    reads=waiter.ticket is None,
                    retry_after_s=(result.retry_after_ms or 0) / 1000,
                )
                is_refused |= failure.transient
                outcomes.append(failure)
            else:
                outcomes.append(result)
        if is_refused:
            self._caller.move_on(answer)
        return outcomes


def _wait(queue: _Queue, waiter: _Waiter, deadline: float) -> None:
    """Until the waiter is answered, is to lead, or has no time left."""
    left_s = max(0.0, deadline - boot_s())
    if waiter.woken.acquire(timeout=min(QUEUED_S_MAX, left_s)):
        return
    queue.lead_if_queued(waiter)
    if waiter.state is _State.SENT:
        waiter.woken.acquire(timeout=max(0.0, deadline - boot_s()))


def _share_of(failure: FailedAttempt, waiter: _Waiter) -> Outcome:
    """What the failure of a whole batch says of one in it."""
    if failure.definite and not failure.transient:
        # One operation that makes no sense has the batch refused: which, each finds out alone.
        waiter.alone = True
        return failure
    error = failure.error
    if isinstance(error, UnknownOutcomeError) and waiter.ticket is None:
        own: RaftkvError = UnavailableError(str(error), status=error.status)
    else:
        # Each thread raises an object of its own, as a traceback is written into it.
        own = type(error)(str(error), status=error.status)
    return FailedAttempt(
        own,
        definite=failure.definite or waiter.ticket is None,
        transient=failure.transient,
        retry_after_s=failure.retry_after_s,
        node_is_suspect=failure.node_is_suspect,
    )


def _not_ours(waiter: _Waiter, error: ServerError) -> FailedAttempt:
    """A success that is not of our server: whatever answered may have passed the writes on."""
    kind = ServerError if waiter.ticket is None else UnknownOutcomeError
    definite = waiter.ticket is None
    return FailedAttempt(kind(str(error), status=error.status), definite=definite, transient=False)


def _lost(waiter: _Waiter, reason: str) -> FailedAttempt:
    if waiter.ticket is None:
        return FailedAttempt(UnavailableError(reason), definite=True, transient=True)
    return FailedAttempt(UnknownOutcomeError(reason), definite=False, transient=True)
