"""Simulated clients: they ask nodes as HTTP workers do, and try again by the client library's rule.

A client with a session (``idempotent``) sends a write again when an answer is lost, and it must be
applied once; one without gives up, and must not be told a lie. Copies of what has a session may
arrive late, from the client or from something between it and the node.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Protocol

import msgspec

from raftkv.client import attempts as rule
from raftkv.client.answers import Problem
from raftkv.client.endpoints import Endpoints
from raftkv.client.errors import RaftkvError, UnknownOutcomeError
from raftkv.core.operations import (
    Command,
    DeleteResult,
    FreeKey,
    GetResult,
    Idempotency,
    Put,
    PutResult,
    Range,
    RangeResult,
    Refused,
    SessionKey,
    Txn,
    TxnResult,
    Write,
    is_read_only,
)
from raftkv.core.shard.expiry import LIFETIME_S
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
from raftkv.sim.front_end import Lost
from raftkv.sim.loop import SimLoop
from raftkv.sim.machine import Machine
from raftkv.sim.scheduler import SECOND_US, Scheduler
from raftkv.sim.violation import Violation
from raftkv.web.api.problems import from_failure, from_refusal

OPERATION_S = 10.0
"""A client gives up an operation after this long."""

ATTEMPT_MS = 2000
"""How long a client waits for one node if it may ask another one; what it asked may live longer."""

RESEND_SHARE = 100 / 120
"""For how much of an outcome's lifetime a write of unknown outcome is sent again."""

BIRTH_START_US = 10**12
"""What births begin at, so that a clock may be behind."""

AGAIN_SHARE = 0.08
"""Share of acknowledged writes that are sent again all the same: a late copy, or another request
under the same name."""

_GRACE_S = 0.5
_CUT_AFTER_S = 0.003


_FULL = frozenset({"table_full", "share_full"})
"""Refusals of a new name that a shard of small tables gives for as long as others have theirs."""


class Witness(Protocol):
    """Sees what reaches nodes, and what they answer, whoever waits for it still."""

    def asked(self, call: Call) -> None:
        """A request reaches a node that serves."""

    def answered(self, call: Call, reply: Reply) -> None:
        """The node answers it."""


class ClientNetwork:
    """The way from clients to the nodes' front ends: HTTP, as far as it matters here.

    Args:
        cut_share: of connections that break under a request or its answer.
        copies: share of writes in a session of which a copy arrives later, if at all: something
            in between that was answered "certainly not" does not try again.
        copies_within_s: by how much later at most.
        wrong: called when such a copy was applied again.

    Attributes:
        unheard: machines that no request reaches.
        unanswered: machines whose answers reach nobody.
        cut: how many requests or answers met with that.
        copies: how many copies were answered.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        loop: SimLoop,
        random: Random,
        *,
        witness: Witness | None = None,
        cut_share: float = 0.0,
        copies: float = 0.0,
        copies_within_s: float = 0.0,
        wrong: Callable[[Violation], None] | None = None,
    ) -> None:
        self.copies = 0
        self._copies = copies
        self._copies_within_s = copies_within_s
        self._wrong = wrong
        self.unheard: set[str] = set()
        self.unanswered: set[str] = set()
        self.cut = 0
        self._witness = witness
        self._number = 0
        self._scheduler = scheduler
        self._loop = loop
        self._random = random
        self.cut_share = cut_share

    def close(self) -> None:
        """Let no copy arrive any more: it would be load where nobody works."""
        self._copies = 0.0

    async def ask(
        self, machine: Machine, request: Request, remaining_ms: int, wait_s: float | None = None
    ) -> Response:
        """Send a request to a node and wait for its answer, by itself as long as an attempt takes.

        The node may be given longer: who asks goes away, and the call lives on.

        Raises:
            Lost: there is none in time, or the connection ended before it.
        """
        answered: asyncio.Future[Response] = self._loop.create_future()
        if wait_s is None:
            wait_s = min(remaining_ms, ATTEMPT_MS) / 1000 + _GRACE_S
        self._scheduler.after(
            self._latency_us(), self._arrive, machine, request, remaining_ms, answered
        )
        if self.cut_share and self._random.random() < self.cut_share:
            cut_us = int(self._random.expovariate(1 / _CUT_AFTER_S) * SECOND_US)
            self._scheduler.after(cut_us, self._answer, answered, Lost(sent=True))
        try:
            async with asyncio.timeout(wait_s):
                return await answered
        except TimeoutError:
            raise Lost(sent=True) from None

    def _arrive(
        self,
        machine: Machine,
        request: Request,
        remaining_ms: int,
        answered: "asyncio.Future[Response]",
    ) -> None:
        if machine.name in self.unheard:
            self.cut += 1
            return
        worker = machine.front.worker
        if worker is None or not worker.serving:
            if machine.powered:
                self._answer(answered, Lost(sent=False))
            return
        call = self._asked(request, remaining_ms)
        worker.take(request, remaining_ms / 1000, partial(self._told, machine, call, answered))
        if self._copies and _in_session(request) and self._random.random() < self._copies:
            late_us = int(self._random.random() * self._copies_within_s * SECOND_US)
            self._scheduler.after(late_us, self._copy_arrives, machine, call, answered)

    def _asked(self, request: Request, remaining_ms: int) -> Call:
        self._number += 1
        call = Call(self._number, remaining_ms, request)
        if self._witness is not None:
            self._witness.asked(call)
        return call

    def _copy_arrives(
        self, machine: Machine, first: Call, answered: "asyncio.Future[Response]"
    ) -> None:
        worker = machine.front.worker
        if not self._copies or worker is None or not worker.serving:
            return
        if not _may_come_again(answered):
            return
        call = self._asked(first.request, first.remaining_ms)
        told = partial(self._copy_told, call, answered)
        worker.take(call.request, call.remaining_ms / 1000, told)

    def _copy_told(
        self, call: Call, answered: "asyncio.Future[Response]", answer: Reply | Lost
    ) -> None:
        """A write that has a revision must not get another."""
        if isinstance(answer, Lost):
            return
        if self._witness is not None:
            self._witness.answered(call, msgspec.structs.replace(answer, id=call.id))
        self.copies += 1
        if answered.cancelled() or answered.exception() is not None:
            return
        first, again = _revision(answered.result()), _revision(answer.response)
        if None not in (first, again) and first != again and self._wrong is not None:
            why = f"a copy of the write with revision {first} was applied again, as {again}"
            self._wrong(Violation(why))

    def _told(
        self,
        machine: Machine,
        call: Call,
        answered: "asyncio.Future[Response]",
        answer: Reply | Lost,
    ) -> None:
        """A worker answers, or its connections end."""
        if self._witness is not None and not isinstance(answer, Lost):
            self._witness.answered(call, msgspec.structs.replace(answer, id=call.id))
        if machine.name in self.unanswered:
            self.cut += 1
            return
        self._answer(answered, answer if isinstance(answer, Lost) else answer.response)

    def _answer(self, answered: "asyncio.Future[Response]", answer: Response | Lost) -> None:
        self._scheduler.after(self._latency_us(), self._loop.call_soon, _settle, answered, answer)

    def _latency_us(self) -> int:
        return 100 + int(self._random.random() * 300)


def _in_session(request: Request) -> bool:
    return isinstance(request, WriteRequest) and isinstance(request.command.idempotency, SessionKey)


def _may_come_again(answered: "asyncio.Future[Response]") -> bool:
    if not answered.done():
        return False
    if answered.cancelled():
        return True
    error = answered.exception()
    if isinstance(error, Lost):
        return error.sent
    response = answered.result()
    if isinstance(response, Refused):  # only what is remembered is answered the same again
        return response.reason in {"precondition", "forgotten"}
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
        number: names it, and it is an owner of its own.
        reachable: the machines that it may ask now.
        idempotent: its writes have names, so that it may send them again.
        free_keys: these are free-form keys instead of a session's.
        call_ms: how long a node may work on one attempt, even if nobody waits any more.
        memory_s: how long outcomes are remembered at least.
        restless: share of writes before which it begins another session.
    """

    def __init__(
        self,
        number: int,
        client_network: ClientNetwork,
        reachable: Callable[[], Sequence[Machine]],
        random: Random,
        *,
        idempotent: bool,
        now_s: Callable[[], float],
        free_keys: bool = False,
        call_ms: int = ATTEMPT_MS,
        memory_s: float = LIFETIME_S,
        restless: float = 0.0,
    ) -> None:
        self.number = number
        self.random = random
        self.client_network = client_network
        self._reachable = reachable
        self._owner = number + 1  # 0 would be nobody
        self._idempotent = idempotent
        self._free_keys = free_keys
        self._call_ms = call_ms
        self._now_s = now_s
        self._resend_s = RESEND_SHARE * memory_s
        self._restless = restless
        # How wrong its clock is: nothing, or more than the time in which sessions are forgotten.
        self._skew_us = int(random.choice((0, 0, -4, 4)) * memory_s * SECOND_US) if restless else 0
        self._sessions = self._sequence = self._born = self._writes = 0
        self._used_s = 0.0
        self._endpoints: Endpoints | None = None
        self._machines: dict[str, Machine] = {}
        """By their URLs."""
        self._last: Command | None = None  # under which another session a write went on
        self.written = 0
        """How many different values it has made."""
        self.given_up: list[tuple[float, str]] = []
        """(when it began, why) of every operation without an answer from a shard."""

    async def write(self, operation: Write, *, refusal: str | None = None) -> Outcome:
        """Put, delete or do a transaction; a failure with the code ``refusal`` is an answer."""
        command = Command(operation, self._name())
        outcome = await self._run(
            WriteRequest(command), repeatable=self._idempotent, refusal=refusal
        )
        command = self._last or command
        reads = isinstance(operation, Txn) and is_read_only(operation)
        if outcome.status == "ok" and command.idempotency is not None and not reads:
            share = self.random.random()
            if share < AGAIN_SHARE:
                await self._repeat(command, outcome.answer)
            elif share < 2 * AGAIN_SHARE:
                await self._reuse(command.idempotency, _key_of(operation))
        return outcome

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
            return await self.client_network.ask(machine, request, self._call_ms)
        except Lost:
            return None

    def _name(self) -> Idempotency | None:
        if not self._idempotent:
            return None
        if self._free_keys:
            self._writes += 1
            return FreeKey(f"client {self.number}, write {self._writes}", self._owner)
        is_idle = self._now_s() - self._used_s > self._resend_s
        if not self._sessions or is_idle or self.random.random() < self._restless:
            self._begin_session(0)
        return self._next_key()

    def _begin_session(self, born_after: int) -> None:
        """From now on writes have names of another session."""
        now_us = BIRTH_START_US + int(self._now_s() * SECOND_US)
        self._skew_us = max(self._skew_us, born_after + 1 - now_us)
        self._born = now_us + self._skew_us
        self._sessions += 1
        self._sequence = 0

    def _next_key(self) -> SessionKey:
        self._sequence += 1
        self._used_s = self._now_s()
        name = f"client {self.number}.{self._sessions}"
        return SessionKey(name, self._sequence, self._sequence, self._born, self._owner)

    def _in_another_session(self, request: Request, answer: Response | Lost) -> WriteRequest | None:
        """What to ask if a write was refused for its session; None if for something else.

        Only for one that cannot have been applied.
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

    async def _repeat(self, command: Command, first: Response) -> None:
        """Send a write once more that was acknowledged just now: it is answered from memory.

        Raises:
            Violation: the answer is another one.
        """
        again = await self.ask_once(WriteRequest(command))
        if not isinstance(again, Failure | None) and again not in (first, *_forgotten(again)):
            raise Violation(
                f"{command.idempotency} was answered with {first}, and sent again with {again}"
            )

    async def _reuse(self, name: Idempotency, key: bytes) -> None:
        """Send something else to the same shard under a name that is taken: it is refused.

        Raises:
            Violation: it is not. (Its condition holds never, so that it does no harm.)
        """
        other = Put(key, b"", if_revision=1)
        answer = await self.ask_once(WriteRequest(Command(other, name)))
        expected = (Refused("key_reused"), *_forgotten(answer))
        if not isinstance(answer, Failure | None) and answer not in expected:
            raise Violation(f"another request under {name} was answered with {answer}")

    def _pick(self) -> Machine:
        return self.random.choice(self._reachable())

    def _endpoints_now(self) -> Endpoints:
        """The nodes that it is told of; it begins anew where that has changed."""
        machines = {f"http://{machine.name}": machine for machine in self._reachable()}
        if self._endpoints is None or machines.keys() != self._machines.keys():
            self._machines = machines
            self._endpoints = Endpoints(
                list(machines), clock=self._now_s, choose=self.random.randrange
            )
        return self._endpoints

    async def _run(
        self, request: Request, *, repeatable: bool, refusal: str | None = None
    ) -> Outcome:
        """Try as the client library does, until that says what is to be believed."""
        began_s = self._now_s()
        reads = isinstance(request, GetRequest | ScanRequest)
        endpoints = self._endpoints_now()
        attempts = rule.Attempts(
            endpoints,
            reads=reads,
            repeatable=repeatable,
            began_s=began_s,
            timeout_s=OPERATION_S,
            resend_window_s=self._resend_s,
            uniform=self.random.uniform,
        )
        self._last = None
        has_room = True  # in the memory of names, as far as a shard has said
        while True:
            attempt = rule.Attempt(
                endpoints,
                reads=reads,
                repeatable=repeatable,
                left_s=attempts.deadline_s - self._now_s(),
                attempt_timeout_s=ATTEMPT_MS / 1000,
            )
            answer, failure = await self._attempt(attempt, request)
            if failure is None:
                return Outcome("ok", answer)
            if isinstance(answer, Refused) and answer.reason in _FULL:
                has_room = False
            if attempts.may_renew(failure, self._now_s()):
                again = self._in_another_session(request, answer)
                if again is not None:
                    request, self._last = again, again.command
                    failure = rule.renewed(failure)
            try:
                await asyncio.sleep(attempts.failed(failure, self._now_s()))
                attempts.paused(failure, self._now_s())
            except RaftkvError as verdict:
                status = "info" if isinstance(verdict, UnknownOutcomeError) else "fail"
                if isinstance(answer, Refused):
                    return Outcome(status, answer, _detail(answer))
                if isinstance(answer, Failure) and answer.code == refusal:
                    return Outcome(status, answer, _why(answer))
                if has_room:
                    self.given_up.append((began_s, f"{type(request).__name__}: {_why(answer)}"))
                return Outcome(status, detail=_why(answer))

    async def _attempt(
        self, attempt: rule.Attempt, request: Request
    ) -> tuple[Response | Lost, rule.FailedAttempt | None]:
        """Ask one node; the failure is None if the answer is a success."""
        machine = self._machines[attempt.endpoint]
        remaining_ms = max(attempt.server_timeout_ms, self._call_ms)
        try:
            answer = await self.client_network.ask(
                machine, request, remaining_ms, attempt.timeout_s
            )
        except Lost as lost:
            if lost.sent:
                return lost, attempt.lost(rule.Lost(str(lost)))
            return lost, attempt.not_sent(rule.ConnectionRefused(str(lost)))
        if isinstance(answer, Failure):
            error = from_failure(answer, read=isinstance(request, GetRequest | ScanRequest))
        elif isinstance(answer, Refused):
            _must_fit(request, answer)
            error = from_refusal(answer)
        else:
            _must_fit(request, answer)
            attempt.answered()
            return answer, None
        problem = msgspec.convert(error.document(), Problem)
        return answer, attempt.refused(problem, (problem.retry_after_ms or 0) / 1000)


def _forgotten(answer: Response | None) -> tuple[Refused, ...]:
    """The answer, if it is that the session was forgotten meanwhile."""
    told = isinstance(answer, Refused) and answer.reason == "forgotten"
    return (answer,) if told and isinstance(answer, Refused) else ()


def _key_of(operation: Write) -> bytes:
    """A key that says which shard it was."""
    if isinstance(operation, Txn):
        first = (*operation.then, *operation.otherwise)[0]
        return first.start if isinstance(first, Range) else first.key
    return operation.key


def _detail(answer: Response) -> str:
    return "forgotten" if _forgotten(answer) else ""


def _why(answer: Response | Lost) -> str:
    """Why there is no answer from a shard."""
    if isinstance(answer, Failure):
        return f"{answer.code}: {answer.detail}"
    return f"no answer ({answer})"


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
