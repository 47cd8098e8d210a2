"""Simulated clients: they ask nodes as HTTP workers do, and try again as the client library does.

A client with a session (``idempotent``) sends a write again when an answer is lost, and it must be
applied once; one without gives up, and must not be told a lie.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from raftkv.core.operations import Command, Refused, SessionKey, Write
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
from raftkv.sim.scheduler import Scheduler

OPERATION_S = 10.0
"""A client gives up an operation after this long."""

ATTEMPT_MS = 2000
"""What a node is given for one attempt."""

_GRACE_S = 0.5
_PAUSE_S = 0.05


class Lost(Exception):  # noqa: N818 - what happened to the answer
    """No answer; ``sent``: the node may have got the request."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("sent" if sent else "not sent")
        self.sent = sent


class Witness(Protocol):
    """Sees what reaches nodes, and what they answer, whoever waits for it still."""

    def asked(self, call: Call) -> None:
        """A request reaches a node that serves."""

    def answered(self, call: Call, reply: Reply) -> None:
        """The node answers it."""


class Doors:
    """The way from clients to the nodes' front ends: HTTP, as far as it matters here."""

    def __init__(
        self, scheduler: Scheduler, loop: SimLoop, random: Random, witness: Witness | None = None
    ) -> None:
        self._witness = witness
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
            if self._witness is not None:
                self._witness.asked(call)
            machine.serving.handle(call, lambda reply: self._reply(call, answered, reply))

    def _reply(self, call: Call, answered: "asyncio.Future[Response]", reply: Reply) -> None:
        if self._witness is not None:
            self._witness.answered(call, reply)
        self._answer(answered, reply.response)

    def _answer(self, answered: "asyncio.Future[Response]", answer: Response | Lost) -> None:
        self._scheduler.after(self._latency_us(), self._loop.call_soon, _settle, answered, answer)

    def _latency_us(self) -> int:
        return 100 + int(self._random.random() * 300)


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
    ) -> None:
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

    async def write(self, operation: Write, *, refusal: str | None = None) -> Outcome:
        """Put, delete or do a transaction; a failure with the code ``refusal`` is an answer."""
        request = WriteRequest(self._command(operation))
        return await self._run(request, repeatable=self._idempotent, refusal=refusal)

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
        self._sequence += 1
        key = SessionKey(f"client {self.number}", self._sequence, self._sequence)
        return Command(operation, key)

    def _pick(self) -> Machine:
        return self.random.choice(self._reachable())

    async def _run(
        self, request: Request, *, repeatable: bool, refusal: str | None = None
    ) -> Outcome:
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
                if not isinstance(answer, Failure):
                    return Outcome(_status(answer), answer)
                detail = f"{answer.code}: {answer.detail}"
                exposed = exposed or not answer.definite
                if answer.code == refusal:
                    return Outcome("info" if exposed else "fail", answer, detail)
            if exposed and not repeatable:
                break
            await asyncio.sleep(_PAUSE_S * (1 + self.random.random()))
        self.given_up.append((began_s, f"{type(request).__name__}: {detail}"))
        reads = isinstance(request, GetRequest | ScanRequest)
        return Outcome("info" if exposed and not reads else "fail", detail=detail)


def _status(answer: Response) -> str:
    """Whether an answer that came from a shard means that the operation was applied."""
    return "fail" if isinstance(answer, Refused) else "ok"
