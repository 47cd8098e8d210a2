"""Machines on a simulated network, with protocols that remember what they were told."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

from sim_parts import Bench

from raftkv.sim.fabric import Fabric, StreamNetwork
from raftkv.sim.loop import SimLoop
from raftkv.sim.streams import SimTransport

OPEN, EOF = "open", "end of stream"


class Peer(asyncio.BufferedProtocol):
    """One end of a connection: everything that it was told.

    Args:
        buffer_bytes: how much it reads at a time.
        greeting: what it sends as soon as it is connected.
    """

    def __init__(self, buffer_bytes: int = 64, greeting: bytes = b"") -> None:
        self._buffer = bytearray(buffer_bytes)
        self._greeting = greeting
        self.transport: SimTransport
        self.received = b""
        self.pieces = 0
        self.state = "not connected"
        self.writing: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        assert self.state == "not connected"
        self.transport, self.state = cast("SimTransport", transport), OPEN
        self.transport.write(self._greeting)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 -- asyncio's name
        """Where to read to."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Remember what was read."""
        assert self.state == OPEN, "nothing is read before the connection is made or after its end"
        self.received += self._buffer[:nbytes]
        self.pieces += 1

    def connection_lost(self, exc: Exception | None) -> None:
        """Remember why; told once."""
        assert self.state == OPEN
        self.state = EOF if exc is None else type(exc).__name__

    def pause_writing(self) -> None:
        """Remember."""
        self.writing.append("pause")

    def resume_writing(self) -> None:
        """Remember."""
        self.writing.append("resume")


@dataclass
class Machine:
    """A host with a process that listens and connects."""

    name: str
    loop: SimLoop
    network: StreamNetwork = field(init=False)
    powered: bool = True
    accepted: list[Peer] = field(default_factory=list)
    greeting: bytes = b""

    def accept(self) -> Peer:
        """Make a protocol for a connection from outside."""
        peer = Peer(greeting=self.greeting)
        self.accepted.append(peer)
        return peer


class Net(Bench):
    """Machines a, b and c; everybody listens."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.fabric = Fabric(self.scheduler, Random(f"net {seed}"), lambda *_: None)
        self.machines = {name: self._machine(name) for name in "abc"}
        self.a, self.b, self.c = self.machines.values()
        for machine in self.machines.values():
            self.start(machine)
        self.run_s(0.1)

    def _machine(self, name: str) -> Machine:
        machine = Machine(name, self.new_loop(ord(name)))
        self.fabric.add(machine)
        return machine

    def start(self, machine: Machine) -> None:
        """Let the machine's process listen."""
        machine.network = StreamNetwork(self.fabric, machine, machine.loop)
        self.spawn(machine, machine.network.listen(machine.accept, "ignored", 0, None))

    def spawn(self, machine: Machine, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine in a machine's process."""
        return machine.loop.create_task(work)

    def dial(self, source: Machine, target: Machine, peer: Peer) -> "asyncio.Task[None]":
        """Begin to connect."""
        return self.spawn(source, source.network.connect(lambda: peer, target.name, 1, None))

    def join(
        self, source: Machine | None = None, target: Machine | None = None, patience_s: float = 0.1
    ) -> tuple[Peer, Peer]:
        """Connect two machines, a and b unless others are named."""
        near, target = Peer(), target or self.b
        task = self.dial(source or self.a, target, near)
        self.run_s(patience_s)
        assert task.done()
        assert task.exception() is None
        far = target.accepted[-1]
        assert (near.state, far.state) == (OPEN, OPEN)
        return near, far

    def kill(self, machine: Machine) -> None:
        """End a machine's process, as Machine does."""
        machine.loop.end()
        self.fabric.kill(machine)

    def cut_power(self, machine: Machine) -> None:
        """Let a machine fall silent, as Machine does."""
        machine.loop.end()
        machine.powered = False
        self.fabric.cut_power(machine)

    def power_on(self, machine: Machine) -> None:
        """Boot it, with a process that listens."""
        machine.powered = True
        machine.loop = self.new_loop(ord(machine.name) + 100)
        self.fabric.power_on(machine)
        self.start(machine)
        self.run_s(0.01)
