"""Concurrent calls of single keys travel together, as transactions do in a group commit.

While fewer requests (*flights*) than two are in the air, a call goes out at once by itself. Calls
that come later queue up, and the next flight takes all of them as one batch. So nobody waits for a
timer, and the busier a client is, the larger its batches are.

There is no thread for this. A calling thread carries the flight that its own call is in, gives the
others in it their outcomes, and hands its right to fly to the first in the queue: nobody carries
others' calls after its own is answered.

What is shared is one *attempt*. Retries, pauses, the deadline and what a caller may believe in the
end stay its own, in :meth:`raftkv.client.calls.Caller.repeat`, as though it had gone alone; a write
keeps its own number in the session, whichever way each attempt goes. Only what can be repeated
travels together: the answer that is lost with a flight is lost for all in it.

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

FLIGHTS_MAX = 2
"""Requests in the air at once. While the servers have one the client makes up the next; more of
them would carry less each, and a request costs everybody much beside what it carries."""

FLIGHT_OPERATIONS_MAX = 256
FLIGHT_BYTES_MAX = 2**20
"""Of keys and values in one flight."""

MEMBER_BYTES_MAX = 2**16
"""What is larger goes alone: sharing its request would cost others more time than it saves."""

PATIENCE_S = 0.1
"""A call that queued this long flies at once. Where a flight waits, for a shard without a leader
perhaps, the others then do not wait for it one after another."""

_HEADERS = {"Content-Type": codec.MSGPACK, "Accept": codec.MSGPACK}

Outcome = OperationResult | FailedAttempt
Alone = Callable[[float], Outcome]
"""Makes one attempt by a request of its own, given the deadline."""


class _State(Enum):
    QUEUED = auto()
    LEADING = auto()
    """It has the right to fly, and must use it or hand it on."""
    FLYING = auto()
    LANDED = auto()


class _Passenger:
    """One attempt of one call. ``woken`` is held until it lands or is to lead."""

    __slots__ = ("alone", "member", "outcome", "state", "ticket", "woken")

    def __init__(self, member: codec.Member, ticket: Ticket | None) -> None:
        self.member = member
        self.ticket = ticket
        self.state = _State.QUEUED
        self.outcome: Outcome = None
        self.alone = False
        self.woken = threading.Lock()
        self.woken.acquire()

    def land(self, outcome: Outcome) -> None:
        """Give it its outcome; the last to be done to it."""
        self.outcome = outcome
        self.state = _State.LANDED
        self.woken.release()


class _Air:
    """What the threads of one process share. The lock guards all of it and passengers' states."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.flights = 0
        # A dict for its order: who comes first flies first, and who gives up leaves from anywhere.
        self.queue: dict[_Passenger, None] = {}

    def enter(self, passenger: _Passenger) -> None:
        """Lead at once if a flight is free, else queue."""
        with self.lock:
            if self.flights < FLIGHTS_MAX:
                self.flights += 1
                passenger.state = _State.LEADING
            else:
                self.queue[passenger] = None

    def lead_if_queued(self, passenger: _Passenger) -> None:
        """Out of patience: fly beside the flights that are in the air."""
        with self.lock:
            if passenger.state is _State.QUEUED:
                del self.queue[passenger]
                self.flights += 1
                passenger.state = _State.LEADING

    def board(self, crew: list[_Passenger]) -> None:
        """Add to the leader as many from the queue as a flight takes."""
        size = crew[0].member.size
        with self.lock:
            for passenger in self.queue:
                size += passenger.member.size
                if len(crew) == FLIGHT_OPERATIONS_MAX or size > FLIGHT_BYTES_MAX:
                    break
                crew.append(passenger)
            for passenger in crew[1:]:
                del self.queue[passenger]
                passenger.state = _State.FLYING

    def hand_on(self) -> None:
        """Give the right to fly to the first in the queue."""
        with self.lock:
            self.flights -= 1
            if self.queue and self.flights < FLIGHTS_MAX:
                first = next(iter(self.queue))
                del self.queue[first]
                self.flights += 1
                first.state = _State.LEADING
                first.woken.release()

    def leave(self, passenger: _Passenger) -> None:
        """Hold nothing any more that another call waits for."""
        with self.lock:
            self.queue.pop(passenger, None)
        if passenger.state is _State.LEADING:
            self.hand_on()


class Coalescer:
    """Lets the single-key calls of one client travel together."""

    def __init__(self, caller: Caller, *, attempt_timeout_s: float) -> None:
        self._caller = caller
        self._attempt_timeout_s = attempt_timeout_s
        self._air = _Air()

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
            passenger = _Passenger(member, ticket)
            self._travel(passenger, alone, deadline)
            if passenger.alone:
                refused_together = True
                return alone(deadline)
            return passenger.outcome

        reads = ticket is None
        renew = (lambda _: False) if ticket is None else ticket.renew
        return self._caller.repeat(attempt, timeout_s, reads=reads, repeatable=True, renew=renew)[0]

    def _travel(self, passenger: _Passenger, alone: Alone, deadline: float) -> None:
        air = self._air
        if air.pid != os.getpid():
            # Of the parent of a fork nobody will ever land here. Should two threads of the child
            # come here at once, each has an air that works, and one of them is left for good.
            air = self._air = _Air()
        try:
            air.enter(passenger)
            if passenger.state is not _State.LEADING:
                _wait(air, passenger, deadline)
            if passenger.state is _State.LEADING:
                self._fly(air, passenger, alone, deadline)
        finally:
            # Also where this thread is interrupted: the others must not wait for it.
            air.leave(passenger)
        if passenger.state is _State.FLYING:
            passenger.outcome = _lost(passenger, "no answer in time")

    def _fly(self, air: _Air, leader: _Passenger, alone: Alone, deadline: float) -> None:
        crew = [leader]
        outcomes: list[Outcome] | None = None
        try:
            air.board(crew)
            outcomes = [alone(deadline)] if len(crew) == 1 else self._send(crew, deadline)
        finally:
            if outcomes is None:
                outcomes = [_lost(p, "the thread that sent it was interrupted") for p in crew]
            leader.outcome = outcomes[0]
            for passenger, outcome in zip(crew[1:], outcomes[1:], strict=True):
                passenger.land(outcome)

    def _send(self, crew: list[_Passenger], deadline: float) -> list[Outcome]:
        lows: dict[str, int] = {}
        for passenger in crew:
            ticket, member = passenger.ticket, passenger.member
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
            body=codec.members_body([passenger.member for passenger in crew]),
            reads=not lows,
            repeatable=True,
        )
        answer = self._caller.attempt(call, deadline)
        if isinstance(answer, FailedAttempt):
            return [_share_of(answer, passenger) for passenger in crew]
        return self._outcomes(crew, answer)

    def _outcomes(self, crew: list[_Passenger], answer: Answer) -> list[Outcome]:
        try:
            results = codec.batch_results(answer, len(crew))
        except ServerError as error:
            return [_not_ours(passenger, error) for passenger in crew]
        outcomes: list[Outcome] = []
        is_refused = False
        for passenger, result in zip(crew, results, strict=True):
            if isinstance(result, Problem):
                # Perhaps only because of what travelled with it: an answer holds so much.
                passenger.alone = result.code == "too_large"
                failure = failure_of_problem(
                    result,
                    reads=passenger.ticket is None,
                    retry_after_s=(result.retry_after_ms or 0) / 1000,
                )
                is_refused |= failure.transient
                outcomes.append(failure)
            else:
                outcomes.append(result)
        if is_refused:
            self._caller.move_on(answer)
        return outcomes


def _wait(air: _Air, passenger: _Passenger, deadline: float) -> None:
    """Until the passenger has landed, is to lead, or has no time left."""
    left_s = max(0.0, deadline - boot_s())
    if passenger.woken.acquire(timeout=min(PATIENCE_S, left_s)):
        return
    air.lead_if_queued(passenger)
    if passenger.state is _State.FLYING:
        passenger.woken.acquire(timeout=max(0.0, deadline - boot_s()))


def _share_of(failure: FailedAttempt, passenger: _Passenger) -> Outcome:
    """What the failure of a whole flight says of one in it."""
    if failure.definite and not failure.transient:
        # One operation that makes no sense has the batch refused: which, each finds out alone.
        passenger.alone = True
        return failure
    error = failure.error
    if isinstance(error, UnknownOutcomeError) and passenger.ticket is None:
        own: RaftkvError = UnavailableError(str(error), status=error.status)
    else:
        # Each thread raises an object of its own, as a traceback is written into it.
        own = type(error)(str(error), status=error.status)
    return FailedAttempt(
        own,
        definite=failure.definite or passenger.ticket is None,
        transient=failure.transient,
        retry_after_s=failure.retry_after_s,
        node_is_suspect=failure.node_is_suspect,
    )


def _not_ours(passenger: _Passenger, error: ServerError) -> FailedAttempt:
    """A success that is not of our server: whatever answered may have passed the writes on."""
    kind = ServerError if passenger.ticket is None else UnknownOutcomeError
    definite = passenger.ticket is None
    return FailedAttempt(kind(str(error), status=error.status), definite=definite, transient=False)


def _lost(passenger: _Passenger, reason: str) -> FailedAttempt:
    if passenger.ticket is None:
        return FailedAttempt(UnavailableError(reason), definite=True, transient=True)
    return FailedAttempt(UnknownOutcomeError(reason), definite=False, transient=True)
