"""A simulated node's front end: a worker process that asks the engine over its Unix socket.

The protocol on the socket is the real one (:mod:`raftkv.rpc.client`, :mod:`raftkv.rpc.server`), on
simulated streams: frames are cut anywhere, sockets fill up, either side may die with calls under
way, and each call must still get one truthful answer. What a worker does beside that, HTTP, is
left out: it takes a request and gives an answer.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path as FilePath
from random import Random
from typing import TYPE_CHECKING, Any

from raftkv.engine.engine import Engine
from raftkv.rpc.client import EngineClient, EngineUnavailableError
from raftkv.rpc.local import IN_FLIGHT_MAX
from raftkv.rpc.messages import Reply, Request
from raftkv.rpc.server import LocalServer
from raftkv.sim.loop import SimLoop
from raftkv.sim.scheduler import SECOND_US, Scheduler
from raftkv.sim.streams import KERNEL_BYTES, Host, Note, Path, SimTransport

if TYPE_CHECKING:
    from raftkv.sim.machine import Machine

TOKEN = b"the token of a simulated engine"

START_US = 100_000
"""What a worker takes to start, and the pause before another takes its place."""

LAST_WORDS_S = 0.01
SPEECHLESS = 0.3
"""A worker without an engine ends within this time; this share of them before it can answer."""

STOP_S = 5.0
"""How long a stopping node waits for its workers."""

Answer = Callable[["Reply | Lost"], None]


class Lost(Exception):  # noqa: N818 -- what happened to the answer
    """No answer; ``sent``: the node may have got the request."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("sent" if sent else "not sent")
        self.sent = sent


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """Bounds of a node's front end. ``worker_life_s``: a worker dies after about that; 0: never."""

    in_flight_max: int = IN_FLIGHT_MAX
    worker_life_s: float = 0.0


class _End:
    """One end of the socket, as its streams see it; both are on one machine."""

    def __init__(self, name: str, machine: "Machine") -> None:
        self.name = name
        self._machine = machine

    @property
    def powered(self) -> bool:
        """Whether the machine has power."""
        return self._machine.powered


class UnixSocket:
    """The kernel between a worker and its engine: a :class:`raftkv.sim.streams.Fabric`."""

    def __init__(
        self, machine: "Machine", scheduler: Scheduler, random: Random, note: Note
    ) -> None:
        self.scheduler = scheduler
        self.random = random
        self.note = note
        self.kernel_bytes = KERNEL_BYTES
        self._path = Path(delay_us=5, jitter_us=50)
        self._engine = _End(f"{machine.name} engine", machine)
        self._worker = _End(f"{machine.name} worker", machine)
        self._open: dict[SimTransport, None] = {}

    def connect(
        self,
        protocol: asyncio.BufferedProtocol,
        loop: SimLoop,
        server: LocalServer,
        engine: SimLoop,
    ) -> None:
        """Connect a worker's ``protocol`` to the server on the engine's loop."""
        near = SimTransport(self, self._worker, loop, self._engine)
        far = SimTransport(self, self._engine, engine, self._worker)
        near.other, far.other = far, near
        self._open[near] = self._open[far] = None
        engine.call_soon(lambda: far.connected(server.accept(engine.as_asyncio)))
        near.connected(protocol)

    def engine_ended(self) -> None:
        """Its process died: what it has written arrives, then the worker sees the end."""
        for transport in [t for t in self._open if t.host is self._engine]:
            transport.killed()

    def worker_ended(self) -> None:
        """A worker's process died."""
        for transport in [t for t in self._open if t.host is self._worker]:
            transport.killed()

    def lost_power(self) -> None:
        """Nothing is left of either side."""
        for transport in list(self._open):
            transport.vanish()

    # --- raftkv.sim.streams.Fabric --------------------------------------------------------------

    def is_silent(self, source: Host, target: Host) -> bool:  # noqa: ARG002
        """Never: there is no network in between."""
        return False

    def latency_us(self, source: Host, target: Host) -> int:  # noqa: ARG002
        """How long until the other side may read it."""
        return self._path.latency_us(self.random)

    def path(self, source: str, target: str) -> Path:  # noqa: ARG002
        """The same in both directions, and never changed."""
        return self._path

    def send_end(self, source: Host, target: Host, arrive: Callable[[], None]) -> None:
        """Say that nothing more comes."""
        self.scheduler.after(self.latency_us(source, target), arrive)

    def forget(self, transport: SimTransport) -> None:
        """A connection's end is gone."""
        self._open.pop(transport, None)


class Worker:
    """One life of an HTTP worker's process.

    Args:
        connect: gives its protocol the connection to the engine.
        ended: called when the process has ended by itself, its engine being gone.
    """

    def __init__(
        self,
        loop: SimLoop,
        random: Random,
        connect: Callable[[asyncio.BufferedProtocol], None],
        ended: Callable[["Worker"], None],
    ) -> None:
        self.loop = loop
        self._random = random
        self._connect = connect
        self._ended = ended
        self._client: EngineClient | None = None
        self._unanswered: dict[int, Answer] = {}
        self._number = 0
        self._start(self._serve())

    @property
    def serving(self) -> bool:
        """Whether it takes requests."""
        return self._client is not None and not self._client.closed.is_set()

    @property
    def unanswered(self) -> int:
        """Requests whose answer has not left it."""
        return len(self._unanswered)

    def take(self, request: Request, timeout_s: float, answer: Answer) -> None:
        """Ask the engine; ``answer`` is called once, unless the machine loses power."""
        self._number += 1
        self._unanswered[self._number] = answer
        self.loop.call_soon(self._begin, self._number, request, timeout_s)

    def end(self, *, silently: bool = False) -> None:
        """The process is no more: who waits sees its connection end, unless the power failed."""
        self.loop.end()
        unanswered, self._unanswered = self._unanswered, {}
        if not silently:
            for answer in unanswered.values():
                answer(Lost(sent=True))

    def _begin(self, number: int, request: Request, timeout_s: float) -> None:
        self._start(self._ask(number, request, timeout_s))

    async def _ask(self, number: int, request: Request, timeout_s: float) -> None:
        assert self._client is not None  # noqa: S101 -- it served when it took the request
        reply = await self._client.call(request, timeout_s)
        self._unanswered.pop(number)(reply)

    async def _serve(self) -> None:
        async def connect(protocol: asyncio.BufferedProtocol) -> None:
            self._connect(protocol)

        try:
            self._client = await EngineClient.connect_by(connect, TOKEN, where="engine.sock")
            await self._client.closed.wait()
            if self._random.random() >= SPEECHLESS:
                await asyncio.sleep(self._random.random() * LAST_WORDS_S)
        except EngineUnavailableError:
            pass  # as the real one does, it ends with its engine
        self._ended(self)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.create_task(work).add_done_callback(_raise)


def _raise(task: "asyncio.Task[None]") -> None:
    """Let the loop hear of what a task raised."""
    task.result()


class FrontEnd:
    """The workers of one machine, one at a time, and the socket to its engine."""

    def __init__(
        self, machine: "Machine", scheduler: Scheduler, seed: str, limits: FrontLimits, note: Note
    ) -> None:
        self.worker: Worker | None = None
        self.calm = False
        """Whether workers have stopped dying."""
        self._machine = machine
        self._scheduler = scheduler
        self._random = Random(seed)
        self._limits = limits
        self._note = note
        self._socket = UnixSocket(machine, scheduler, Random(self._random.random()), note)
        self._server: LocalServer | None = None
        self._life = 0

    # --- with the engine's process --------------------------------------------------------------

    def open(self, engine: Engine) -> None:
        """Serve the engine that has just started."""
        self._server = LocalServer(
            FilePath("/data/engine.sock"),
            TOKEN,
            engine.handle,
            node=self._machine.name,
            in_flight_max=self._limits.in_flight_max,
        )
        self._spawn_later()

    async def stop_workers(self) -> None:
        """Take nothing more, and let what was taken be answered, for a while."""
        self._life += 1
        worker, self.worker = self.worker, None
        if worker is None:
            return
        deadline_us = self._scheduler.now_us + int(STOP_S * SECOND_US)
        while worker.unanswered and self._scheduler.now_us < deadline_us:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        worker.end()
        self._socket.worker_ended()

    @property
    def in_flight(self) -> int:
        """Calls whose reply the engine has not written."""
        return 0 if self._server is None else self._server.in_flight

    async def close(self) -> None:
        """Close the engine's side."""
        if self._server is not None:
            await self._server.close()

    def engine_ended(self) -> None:
        """The engine's process has ended; its worker notices, and ends too."""
        self._server = None
        self._life += 1
        self._socket.engine_ended()

    def lost_power(self) -> None:
        """Everything has ended, and nobody is told."""
        self._server = None
        self._life += 1
        if self.worker is not None:
            self.worker.end(silently=True)
            self.worker = None
        self._socket.lost_power()

    # --- workers --------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        """Kill the worker; another takes its place."""
        if self.worker is not None and self.worker.serving:
            self._note("kill worker", self._machine.name)
            self.worker.end()
            self._socket.worker_ended()
            self.worker = None
            self._spawn_later()

    def _spawn_later(self) -> None:
        self._life += 1
        pause_us = START_US + int(self._random.random() * START_US)
        self._scheduler.after(pause_us, self._spawn, self._life)

    def _spawn(self, life: int) -> None:
        server = self._server
        if life != self._life or server is None:
            return
        machine = self._machine
        loop = SimLoop(
            self._scheduler,
            machine.clock,
            Random(self._random.random()),
            failed=machine.worker_failed,
        )
        engine = machine.loop
        self.worker = Worker(
            loop,
            self._random,
            lambda protocol: self._socket.connect(protocol, loop, server, engine),
            self._worker_ended,
        )
        if self._limits.worker_life_s:
            dies_s = self._random.expovariate(1 / self._limits.worker_life_s)
            self._scheduler.after(int(dies_s * SECOND_US), self._die, life)

    def _die(self, life: int) -> None:
        if life == self._life and not self.calm:
            self.kill_worker()

    def _worker_ended(self, worker: Worker) -> None:
        worker.end()
        if self.worker is worker:
            self.worker = None
            self._socket.worker_ended()
            if self._server is not None:
                self._spawn_later()
