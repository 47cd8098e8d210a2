"""Simulated clients: they ask nodes as HTTP workers do, and try again as the client library does.

A client with a session (``idempotent``) sends a write again when an answer is lost, and it must be
applied once; one without gives up, and must not be told a lie.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from raftkv.core.operations import (
    Command,
    DeleteResult,
    GetResult,
    Put,
    PutResult,
    RangeResult,
    Refused,
    SessionKey,
    Txn,
    TxnResult,
    Write,
)
from raftkv.rpc.messages import (
    BatchRequest,
    BatchResult,
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
from raftkv.sim.violation import Violation

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


class Doors:
    """The way from clients to the nodes' front ends: HTTP, as far as it matters here.

    Attributes:
        unheard: machines that no request reaches.
        unanswered: machines whose answers reach nobody.
        cut: how many requests or answers met with that.
    """

    def __init__(
        self, scheduler: Scheduler, loop: SimLoop, random: Random, *, call_ms: int = 0
    ) -> None:
        self.unheard: set[str] = set()
        self.unanswered: set[str] = set()
        self.cut = 0
        self._call_ms = call_ms
        self._scheduler = scheduler
        self._loop = loop
        self._random = random
        self._number = 0
        self._waiting: dict[str, dict[int, asyncio.Future[Response]]] = {}

    async def ask(self, machine: Machine, request: Request, remaining_ms: int) -> Response:
        """Send a request to a node and wait for its answer.

        The node is given ``call_ms`` if that is longer: who asks goes away, and the call lives on.

        Raises:
            Lost: there is none in time, or the node ended before it answered.
        """
        self._number += 1
        call = Call(self._number, max(remaining_ms, self._call_ms), request)
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
        if machine.name in self.unheard:
            self.cut += 1
            return
        if machine.serving is None:
            if machine.powered:
                self._answer(answered, Lost(sent=False))
            return
        machine.loop.call_soon(self._serve, machine, call, answered)

    def _serve(self, machine: Machine, call: Call, answered: "asyncio.Future[Response]") -> None:
        if machine.serving is not None:
            machine.serving.handle(call, lambda reply: self._reply(machine, answered, reply))

    def _reply(self, machine: Machine, answered: "asyncio.Future[Response]", reply: Reply) -> None:
        if machine.name in self.unanswered:
            self.cut += 1
            return
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
        self.doors = doors
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
        return await self.ask_machine(self._pick(), request)

    async def ask_machine(self, machine: Machine, request: Request) -> Response | None:
        """One attempt at this machine, whatever comes of it."""
        try:
            return await self.doors.ask(machine, request, ATTEMPT_MS)
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

    async def _run(self, request: Request, *, repeatable: bool) -> Outcome:
        """Try until there is an answer, the time is up, or trying again could do it twice."""
        began_s = self._now_s()
        deadline = began_s + OPERATION_S
        exposed = False
        detail = "no node could be asked"
        while self._now_s() < deadline:
            try:
                answer = await self.doors.ask(self._pick(), request, ATTEMPT_MS)
            except Lost as lost:
                detail = f"no answer ({lost})"
                exposed = exposed or lost.sent
            else:
                if not isinstance(answer, Failure):
                    _must_fit(request, answer)
                    return Outcome(_status(answer), answer)
                detail = f"{answer.code}: {answer.detail}"
                exposed = exposed or not answer.definite
            if exposed and not repeatable:
                break
            await asyncio.sleep(_PAUSE_S * (1 + self.random.random()))
        self.given_up.append((began_s, f"{type(request).__name__}: {detail}"))
        reads = isinstance(request, GetRequest | ScanRequest)
        return Outcome("info" if exposed and not reads else "fail", detail=detail)


def _must_fit(request: Request, answer: Response) -> None:
    """Check that this can be an answer to that; what answers another request is a lie.

    Raises:
        Violation: it cannot.
    """
    match request:
        case WriteRequest(command=Command(operation=Txn() as txn)):
            fits = isinstance(answer, Refused) or (
                isinstance(answer, TxnResult)
                and len(answer.results) == len(txn.then if answer.succeeded else txn.otherwise)
            )
        case WriteRequest(command=Command(operation=Put())):
            fits = isinstance(answer, PutResult | Refused)
        case WriteRequest():
            fits = isinstance(answer, DeleteResult | Refused)
        case GetRequest(key=key):
            fits = isinstance(answer, GetResult) and (
                answer.entry is None or answer.entry.key == key
            )
        case ScanRequest():
            fits = isinstance(answer, RangeResult)
        case BatchRequest(operations=items):
            fits = isinstance(answer, BatchResult) and len(answer.results) == len(items)
        case _:
            fits = True
    if not fits:
        raise Violation(f"{type(answer).__name__} is no answer to {request}")


def _status(answer: Response) -> str:
    """Whether an answer that came from a shard means that the operation was applied."""
    return "fail" if isinstance(answer, Refused) else "ok"
