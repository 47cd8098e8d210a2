"""Simulated clients: they ask nodes as HTTP workers do, and try again as the client library does.

A client with a session (``idempotent``) sends a write again when an answer is lost, and it must be
applied once; one without gives up, and must not be told a lie. Copies of what has a session may
arrive late, from the client or from something between it and the node.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from raftkv.core.expiry import LIFETIME_S
from raftkv.core.operations import (
    Command,
    DeleteResult,
    PutResult,
    Refused,
    SessionKey,
    TxnResult,
    Write,
)
from raftkv.rpc.messages import (
    BatchRequest,
    Call,
    Failure,
    GetRequest,
    Reply,
    Request,
    Response,
    ScanRequest,
    WriteRequest,
)
from raftkv.sim.loop import SimLoop
from raftkv.sim.machine import Machine
from raftkv.sim.scheduler import SECOND_US, Scheduler
from raftkv.sim.violation import Violation

OPERATION_S = 10.0
"""A client gives up an operation after this long."""

ATTEMPT_MS = 2000
"""What a node is given for one attempt."""

RESEND_SHARE = 100 / 120
"""For how much of an outcome's lifetime a write of unknown outcome is sent again."""

BIRTH_START_US = 10**12
"""What births begin at, so that a clock may be behind."""

_GRACE_S = 0.5
_PAUSE_S = 0.05


class Lost(Exception):  # noqa: N818 - what happened to the answer
    """No answer; ``sent``: the node may have got the request."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("sent" if sent else "not sent")
        self.sent = sent


class Doors:
    """The way from clients to the nodes' front ends: HTTP, as far as it matters here.

    Args:
        copies: share of requests in a session of which a copy arrives later, if at all: something
            in between that was answered "certainly not" does not try again.
        copies_within_s: by how much later at most.
        wrong: called when such a copy was applied again.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        loop: SimLoop,
        random: Random,
        *,
        copies: float = 0.0,
        copies_within_s: float = 0.0,
        wrong: Callable[[Violation], None] | None = None,
    ) -> None:
        self.copies = 0
        """How many copies were answered."""
        self._copies = copies
        self._copies_within_s = copies_within_s
        self._wrong = wrong
        self._scheduler = scheduler
        self._loop = loop
        self._random = random
        self._number = 0
        self._waiting: dict[str, dict[int, asyncio.Future[Response]]] = {}

    async def ask(self, machine: Machine, request: Request, remaining_ms: int) -> Response:
        """Send a request to a node and wait for its answer.

        Raises:
            Lost: there is none in time, or the node ended before it answered.
        """
        self._number += 1
        call = Call(self._number, remaining_ms, request)
        answered: asyncio.Future[Response] = self._loop.create_future()
        waiting = self._waiting.setdefault(machine.name, {})
        waiting[call.id] = answered
        self._scheduler.after(self._latency_us(), self._arrive, machine, call, answered)
        if self._copies and _in_session(request) and self._random.random() < self._copies:
            late_us = int(self._random.random() * self._copies_within_s * SECOND_US)
            self._scheduler.after(late_us, self._copy_arrives, machine, call, answered)
        try:
            async with asyncio.timeout(remaining_ms / 1000 + _GRACE_S):
                return await answered
        except TimeoutError:
            raise Lost(sent=True) from None
        finally:
            waiting.pop(call.id, None)

    def ended(self, machine: Machine) -> None:
        """A node's process has ended, and with it its connections."""
        for answered in self._waiting.get(machine.name, {}).values():
            self._answer(answered, Lost(sent=True))

    def _arrive(self, machine: Machine, call: Call, answered: "asyncio.Future[Response]") -> None:
        if machine.serving is None:
            if machine.powered:
                self._answer(answered, Lost(sent=False))
            return
        machine.loop.call_soon(self._serve, machine, call, answered)

    def _serve(self, machine: Machine, call: Call, answered: "asyncio.Future[Response]") -> None:
        if machine.serving is not None:
            machine.serving.handle(call, lambda reply: self._reply(answered, reply))

    def _copy_arrives(
        self, machine: Machine, call: Call, answered: "asyncio.Future[Response]"
    ) -> None:
        if machine.serving is not None and _may_come_again(answered):
            machine.loop.call_soon(self._serve_copy, machine, call, answered)

    def _serve_copy(
        self, machine: Machine, call: Call, answered: "asyncio.Future[Response]"
    ) -> None:
        if machine.serving is not None:
            self._number += 1
            copy = msgspec.structs.replace(call, id=self._number)
            machine.serving.handle(copy, lambda reply: self._copy_answered(answered, reply))

    def _copy_answered(self, answered: "asyncio.Future[Response]", reply: Reply) -> None:
        """A write that has a revision must not get another."""
        self.copies += 1
        if answered.cancelled() or answered.exception() is not None:
            return
        first, again = _revision(answered.result()), _revision(reply.response)
        if None not in (first, again) and first != again and self._wrong is not None:
            why = f"a copy of the write with revision {first} was applied again, as {again}"
            self._wrong(Violation(why))

    def _reply(self, answered: "asyncio.Future[Response]", reply: Reply) -> None:
        self._answer(answered, reply.response)

    def _answer(self, answered: "asyncio.Future[Response]", answer: Response | Lost) -> None:
        self._scheduler.after(self._latency_us(), self._loop.call_soon, _settle, answered, answer)

    def _latency_us(self) -> int:
        return 100 + int(self._random.random() * 300)


def _in_session(request: Request) -> bool:
    return isinstance(request, WriteRequest) and request.command.idempotency is not None


def _may_come_again(answered: "asyncio.Future[Response]") -> bool:
    if not answered.done():
        return False
    if answered.cancelled():
        return True
    error = answered.exception()
    if isinstance(error, Lost):
        return error.sent
    response = answered.result()
    return not (isinstance(response, Failure) and response.definite)


def _revision(response: Response) -> int | None:
    if isinstance(response, PutResult | DeleteResult | TxnResult):
        return response.revision
    return None


def _settle(answered: "asyncio.Future[Response]", answer: Response | Lost) -> None:
    if answered.done():
        return
    if isinstance(answer, Lost):
        answered.set_exception(answer)
    else:
        answered.set_result(answer)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client knows in the end: ``status`` as in a history, and the answer if any."""

    status: str
    answer: Any = None
    detail: str = ""


class Client:
    """One client: one operation at a time, a session of its own.

    Args:
        number: names it.
        reachable: the machines that it may ask now.
        memory_s: how long outcomes are remembered at least.
        restless: share of writes before which it begins another session.
    """

    def __init__(
        self,
        number: int,
        doors: Doors,
        reachable: Callable[[], Sequence[Machine]],
        random: Random,
        *,
        idempotent: bool,
        now_s: Callable[[], float],
        memory_s: float = LIFETIME_S,
        restless: float = 0.0,
    ) -> None:
        self._resend_s = RESEND_SHARE * memory_s
        self._restless = restless
        # How wrong its clock is: nothing, or more than the time in which sessions are forgotten.
        self._skew_us = int(random.choice((0, 0, -4, 4)) * memory_s * SECOND_US) if restless else 0
        self._sessions = 0
        self._born = 0
        self._used_s = 0.0
        self.number = number
        self.random = random
        self._doors = doors
        self._reachable = reachable
        self._idempotent = idempotent
        self._now_s = now_s
        self._sequence = 0
        self.written = 0
        """How many different values it has made."""
        self.given_up: list[tuple[float, str]] = []
        """(when it began, why) of every operation without an answer from a shard."""

    async def write(self, operation: Write) -> Outcome:
        """Put, delete or do a transaction."""
        return await self._run(WriteRequest(self._command(operation)), repeatable=self._idempotent)

    async def read(self, request: GetRequest | ScanRequest) -> Outcome:
        """Read; of unknown outcome is a read never."""
        return await self._run(request, repeatable=True)

    async def batch(self, operations: Sequence[Write | GetRequest]) -> Outcome:
        """Several independent operations at once; one attempt only."""
        items = [
            operation if isinstance(operation, GetRequest) else Command(operation)
            for operation in operations
        ]
        return await self._run(BatchRequest(tuple(items)), repeatable=False)

    async def ask_once(self, request: Request) -> Response | None:
        """One attempt, whatever comes of it."""
        try:
            return await self._doors.ask(self._pick(), request, ATTEMPT_MS)
        except Lost:
            return None

    def _command(self, operation: Write) -> Command:
        if not self._idempotent:
            return Command(operation)
        is_idle = self._now_s() - self._used_s > self._resend_s
        if not self._sessions or is_idle or self.random.random() < self._restless:
            self._begin_session(0)
        return Command(operation, self._next_key())

    def _begin_session(self, born_after: int) -> None:
        now_us = BIRTH_START_US + int(self._now_s() * SECOND_US)
        self._skew_us = max(self._skew_us, born_after + 1 - now_us)
        self._born = now_us + self._skew_us
        self._sessions += 1
        self._sequence = 0

    def _next_key(self) -> SessionKey:
        self._sequence += 1
        self._used_s = self._now_s()
        name = f"client {self.number}.{self._sessions}"
        return SessionKey(name, self._sequence, self._sequence, self._born)

    def _in_another_session(self, request: Request, answer: Response) -> Request | None:
        """What to ask if a write was refused for its session; None if for something else.

        Only for one that cannot have been applied, as :mod:`raftkv.client.calls` has it.
        """
        if not isinstance(request, WriteRequest) or not isinstance(answer, Refused):
            return None
        key, born_after = request.command.idempotency, answer.current_revision
        if answer.reason != "forgotten" or born_after is None or not isinstance(key, SessionKey):
            return None
        if key.born > born_after:
            return None
        self._begin_session(born_after)
        return WriteRequest(Command(request.command.operation, self._next_key()))

    def _pick(self) -> Machine:
        return self.random.choice(self._reachable())

    async def _run(self, request: Request, *, repeatable: bool) -> Outcome:
        """Try until there is an answer, the time is up, or trying again could do it twice."""
        began_s = self._now_s()
        deadline = began_s + OPERATION_S
        exposed = False
        detail = "no node could be asked"
        while self._now_s() < deadline:
            try:
                answer = await self._doors.ask(self._pick(), request, ATTEMPT_MS)
            except Lost as lost:
                detail = f"no answer ({lost})"
                exposed = exposed or lost.sent
            else:
                is_young = self._now_s() - began_s <= self._resend_s
                again = None
                if is_young and not exposed:
                    again = self._in_another_session(request, answer)
                if again is not None:
                    request = again
                elif not isinstance(answer, Failure):
                    return Outcome(_status(answer), answer, _detail(answer))
                else:
                    detail = f"{answer.code}: {answer.detail}"
                    exposed = exposed or not answer.definite
            is_old = self._now_s() - began_s > self._resend_s
            if exposed and (not repeatable or (is_old and isinstance(request, WriteRequest))):
                break
            await asyncio.sleep(_PAUSE_S * (1 + self.random.random()))
        self.given_up.append((began_s, f"{type(request).__name__}: {detail}"))
        reads = isinstance(request, GetRequest | ScanRequest)
        return Outcome("info" if exposed and not reads else "fail", detail=detail)


def _status(answer: Response) -> str:
    """Whether an answer that came from a shard means that the operation was applied."""
    if not isinstance(answer, Refused):
        return "ok"
    # A copy sent before may have been applied, and forgotten since.
    return "info" if answer.reason == "forgotten" else "fail"


def _detail(answer: Response) -> str:
    is_forgotten = isinstance(answer, Refused) and answer.reason == "forgotten"
    return "forgotten" if is_forgotten else ""
