"""Simulated streams: what TCP promises is kept, whatever the network does."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim_parts import Bench

from raftkv.sim import streams
from raftkv.sim.loop import SimLoop
from raftkv.sim.streams import RETRANSMISSION_US, Fabric, SimTransport, StreamNetwork

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

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - asyncio's name
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


# --- connections -----------------------------------------------------------------------------


def test_both_sides_hear_of_a_connection_and_of_each_other() -> None:
    """The address of the other side is its name."""
    near, far = Net().join()
    assert near.transport.get_extra_info("peername") == ("b", 0)
    assert far.transport.get_extra_info("peername") == ("a", 0)
    assert near.transport.get_extra_info("ssl_object") is None


def test_a_connection_is_refused_where_nobody_listens() -> None:
    """After a kill, or after the listener was closed."""
    net = Net()
    net.kill(net.b)
    task = net.dial(net.a, net.b, Peer())
    net.run_s(0.1)
    assert isinstance(task.exception(), ConnectionRefusedError)


def test_a_closed_listener_accepts_no_more_but_keeps_what_it_has() -> None:
    """What is connected goes on."""
    net = Net()
    task = net.spawn(net.a, net.a.network.listen(Peer, "", 0, None))
    net.run_s(0.01)
    assert "in use" in str(task.exception()), "one listener for each machine"
    net.fabric.cut_power(net.c)  # which takes its listener
    listening = net.spawn(net.c, net.c.network.listen(net.c.accept, "", 0, None))
    net.run_s(0.01)
    near, far = net.join(net.a, net.c)
    net.spawn(net.c, listening.result().close())
    net.run_s(0.01)
    refused = net.dial(net.a, net.c, Peer())
    near.transport.write(b"still here")
    net.run_s(0.1)
    assert isinstance(refused.exception(), ConnectionRefusedError)
    assert far.received == b"still here"


@pytest.mark.parametrize("direction", [("a", "b"), ("b", "a")])
def test_a_connection_through_silence_gets_no_answer(direction: tuple[str, str]) -> None:
    """Neither refused nor made: only the caller's patience ends it."""
    net = Net()
    net.fabric.silence(*direction)
    task = net.dial(net.a, net.b, peer := Peer())
    net.run_s(60.0)
    assert not task.done()
    task.cancel()
    net.run_s(0.1)
    assert (task.cancelled(), peer.state) == (True, "not connected")


def test_a_machine_without_power_does_not_refuse_either() -> None:
    """It does nothing."""
    net = Net()
    net.cut_power(net.b)
    task = net.dial(net.a, net.b, Peer())
    net.run_s(60.0)
    assert not task.done()
    net.power_on(net.b)
    assert net.join(net.a, net.b)


def test_who_has_stopped_waiting_breaks_the_connection_that_comes() -> None:
    """The other side had accepted it, and hears of its end."""
    net = Net()
    net.fabric.path("b", "a").delay_us = 1_000_000
    task = net.dial(net.a, net.b, near := Peer())
    net.run_s(0.5)
    assert net.b.accepted[0].state == OPEN
    task.cancel()
    net.run_s(5.0)
    assert near.state == "not connected"
    assert net.b.accepted[0].state == "ConnectionResetError"


def test_a_connection_that_breaks_before_it_is_answered_fails() -> None:
    """Who asked for it is told, instead of waiting for its protocol to be connected."""
    net = Net()
    net.fabric.path("b", "a").delay_us = 1_000_000
    task = net.dial(net.a, net.b, near := Peer())
    net.run_s(0.5)
    net.fabric.reset("a", "b")
    net.run_s(1.0)
    assert isinstance(task.exception(), ConnectionResetError)
    assert near.state == "not connected"


@pytest.mark.parametrize("seed", range(20))
def test_what_the_accepting_side_says_first_is_not_lost(seed: int) -> None:
    """Its greeting may be on its way before the caller knows of the connection."""
    net = Net(seed)
    net.fabric.path("b", "a").jitter_us = 50_000
    net.b.greeting = b"hello"
    net.dial(net.a, net.b, near := Peer())
    net.run_s(1.0)
    assert near.received == b"hello"


# --- order -----------------------------------------------------------------------------------


def test_bytes_arrive_in_order_and_once() -> None:
    """In both directions, on a path whose delays vary, in pieces of any size."""
    net = Net()
    for direction in (("a", "b"), ("b", "a")):
        net.fabric.path(*direction).jitter_us = 20_000
    near, far = net.join()
    words = [f"{number} ".encode() for number in range(500)]
    for word in words:
        near.transport.write(word)
        far.transport.writelines([word, word.upper()])
        net.run_s(0.001)
    net.run_s(1.0)
    assert far.received == b"".join(words)
    assert near.received == b"".join(word + word for word in words)


def test_deliveries_are_cut_and_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader sees the stream in pieces that have nothing to do with the writes."""
    monkeypatch.setattr(streams, "_SPLIT", 0.5)
    net = Net()
    near, far = net.join()
    for _ in range(50):
        near.transport.write(b"0123456789")
    net.run_s(1.0)
    assert far.received == b"0123456789" * 50
    far.pieces, far.received = 0, b""
    for _ in range(50):
        near.transport.write(b"0123456789")
        net.run_s(0.1)
    assert far.received == b"0123456789" * 50
    assert far.pieces > 60, "ten bytes at a time would be 50"


def test_a_path_has_its_delay_in_each_direction() -> None:
    """Slow one way is not slow the other way."""
    net = Net()
    near, far = net.join()
    net.fabric.path("a", "b").delay_us = 3_000_000
    near.transport.write(b"slow")
    far.transport.write(b"fast")
    net.run_s(0.1)
    assert (near.received, far.received) == (b"fast", b"")
    net.run_s(2.8)
    assert far.received == b""
    net.run_s(0.2)
    assert far.received == b"slow"


def test_loss_costs_time_and_nothing_else() -> None:
    """Every lost segment is sent again after the retransmission time-out."""
    net = Net()
    net.fabric.path("a", "b").loss = 0.5
    path, random = net.fabric.path("a", "b"), Random(1)
    latencies_us = [path.latency_us(random) for _ in range(1000)]
    again = [latency_us // RETRANSMISSION_US for latency_us in latencies_us]
    assert sum(count == 0 for count in again) == pytest.approx(500, abs=60)
    assert sum(again) == pytest.approx(1000, rel=0.15), "the mean of a geometric distribution"
    near, far = net.join(patience_s=20.0)
    for number in range(100):
        near.transport.write(bytes([number]))
    net.run_s(20.0)
    assert far.received == bytes(range(100))


# --- silence ---------------------------------------------------------------------------------


def test_silence_holds_what_is_sent_until_it_ends() -> None:
    """Nothing is lost, and nobody is told; then it is retransmitted."""
    net = Net()
    near, far = net.join()
    near.transport.write(b"before ")
    net.run_s(0.1)
    net.fabric.silence("a", "b")
    near.transport.write(b"during ")
    net.run_s(30.0)
    assert (near.state, far.state, far.received) == (OPEN, OPEN, b"before ")
    net.fabric.speak("a", "b")
    near.transport.write(b"after")
    net.run_s(0.001)
    assert far.received == b"before ", "what was held comes with the next retransmission"
    net.run_s(1.0)
    assert far.received == b"before during after"


def test_what_is_on_its_way_when_silence_begins_is_held_too() -> None:
    """It is lost on the way, and the sender sends it again."""
    net = Net()
    near, far = net.join()
    net.fabric.path("a", "b").delay_us = 100_000
    near.transport.write(b"x")
    net.run_s(0.05)
    net.fabric.silence("a", "b")
    net.run_s(10.0)
    assert far.received == b""
    net.fabric.speak("a", "b")
    net.run_s(1.0)
    assert far.received == b"x"


def test_silence_is_of_one_direction() -> None:
    """The other direction, and other machines, are heard."""
    net = Net()
    near, far = net.join()
    other, its_far = net.join(net.c, net.b)
    net.fabric.silence("a", "b")
    for peer in (near, far, other):
        peer.transport.write(b"x")
    net.run_s(1.0)
    assert (near.received, far.received, its_far.received) == (b"x", b"", b"x")


def test_a_path_that_flickers_loses_nothing() -> None:
    """Silences that come and go delay the stream and leave it whole."""
    net = Net()
    near, far = net.join()
    for number in range(100):
        near.transport.write(bytes([number]))
        (net.fabric.silence if number % 3 else net.fabric.speak)("a", "b")
        net.run_s(0.01)
    net.fabric.speak("a", "b")
    net.run_s(1.0)
    assert far.received == bytes(range(100))


def test_a_broken_connection_is_not_announced_through_silence() -> None:
    """The other side learns of an abort when it sends something itself, or never."""
    net = Net()
    near, far = net.join()
    net.fabric.silence("a", "b")
    near.transport.abort()
    net.run_s(10.0)
    assert (near.state, far.state) == (EOF, OPEN)
    net.fabric.speak("a", "b")
    net.run_s(10.0)
    assert far.state == OPEN
    far.transport.write(b"are you there?")
    net.run_s(1.0)
    assert far.state == "ConnectionResetError"


# --- ends ------------------------------------------------------------------------------------


def test_close_delivers_everything_and_then_ends() -> None:
    """The other side reads all that was written before it sees the end of the stream."""
    net = Net()
    near, far = net.join()
    near.transport.write(b"last words")
    near.transport.close()
    assert near.transport.is_closing()
    near.transport.write(b" too late")
    net.run_s(1.0)
    assert far.received == b"last words"
    assert (near.state, far.state) == (EOF, EOF)


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_reader_that_stands_still_reads_everything_before_the_end(end: str) -> None:
    """What has arrived waits in its kernel, and the end of the stream behind it."""
    net = Net()
    near, far = net.join()
    net.b.loop.freeze()
    near.transport.write(b"last words")
    net.run_s(0.1)
    if end == "close":
        near.transport.close()
    else:
        net.kill(net.a)
    net.run_s(1.0)
    net.b.loop.thaw()
    net.run_s(0.1)
    assert (far.received, far.state) == (b"last words", EOF)


def test_abort_ends_at_once() -> None:
    """What was not delivered is lost; the other side sees a reset."""
    net = Net()
    near, far = net.join()
    near.transport.write(b"lost")
    near.transport.abort()
    near.transport.abort()
    net.run_s(1.0)
    assert (near.state, far.state, far.received) == (EOF, "ConnectionResetError", b"")


def test_a_reset_loses_a_tail_only() -> None:
    """Both sides hear of it; each has a prefix of what the other had sent."""
    prefixes = set()
    for seed in range(20):
        net = Net(seed)
        net.fabric.path("a", "b").jitter_us = 5_000
        near, far = net.join()
        other, _ = net.join(net.a, net.c)
        for number in range(10):
            near.transport.write(bytes([number]))
            net.run_s(0.001)
        net.fabric.reset("b", "a")
        net.run_s(1.0)
        assert near.state == far.state == "ConnectionResetError"
        assert other.state == OPEN, "connections between other machines go on"
        assert far.received == bytes(range(len(far.received)))
        prefixes.add(len(far.received))
    assert len(prefixes) > 3, "chance decides how much was lost"


def test_what_a_killed_process_has_written_arrives() -> None:
    """Its kernel sends it, and then the end; the process itself hears nothing more."""
    net = Net()
    near, far = net.join()
    near.transport.write(b"testament")
    far.transport.write(b"never read")
    net.kill(net.a)
    net.run_s(1.0)
    assert (far.received, far.state) == (b"testament", EOF)
    assert (near.received, near.state) == (b"", OPEN)


def test_a_killed_process_is_heard_after_a_silence() -> None:
    """What its kernel could not deliver is delivered when the network speaks again."""
    net = Net()
    near, far = net.join()
    net.fabric.silence("a", "b")
    near.transport.write(b"testament")
    net.kill(net.a)
    net.run_s(5.0)
    assert (far.received, far.state) == (b"", OPEN)
    net.fabric.speak("a", "b")
    net.run_s(1.0)
    assert (far.received, far.state) == (b"testament", EOF)


def test_a_machine_without_power_says_nothing() -> None:
    """The other side waits for ever, and what it sends is answered by nobody."""
    net = Net()
    near, far = net.join()
    near.transport.write(b"lost with the kernel")
    net.cut_power(net.a)
    far.transport.write(b"are you there?")
    net.run_s(100.0)
    assert (far.received, far.state) == (b"", OPEN)
    assert near.state == OPEN


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_machine_that_is_back_knows_nothing_of_old_connections(when: str) -> None:
    """Data for them, sent while it was away or later, is answered by a reset."""
    net = Net()
    _, far = net.join()
    _, idle = net.join(net.a, net.c)
    net.cut_power(net.a)
    if when == "before":
        far.transport.write(b"are you there?")
    net.run_s(1.0)
    net.power_on(net.a)
    if when == "after":
        far.transport.write(b"are you there?")
    net.run_s(1.0)
    assert far.state == "ConnectionResetError"
    assert idle.state == OPEN, "who says nothing is told nothing"
    near, far = net.join(net.b, net.a)
    near.transport.write(b"new")
    net.run_s(0.1)
    assert far.received == b"new"


# --- back pressure ---------------------------------------------------------------------------


@pytest.fixture
def small_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that hold 1,000 bytes of one direction, both together."""
    monkeypatch.setattr(streams, "KERNEL_BYTES", 1000)


@pytest.mark.usefixtures("small_kernels")
def test_a_sender_is_paused_when_the_kernels_are_full_and_resumed_when_they_drain() -> None:
    """Above the high mark it is told to pause; at the low mark to go on."""
    net = Net()
    near, far = net.join()
    near.transport.set_write_buffer_limits(high=500, low=100)
    net.fabric.silence("a", "b")
    near.transport.write(bytes(1500))
    assert (near.transport.get_write_buffer_size(), near.writing) == (500, [])
    near.transport.write(b"x")
    near.transport.write(b"y")
    assert near.writing == ["pause"]
    net.fabric.speak("a", "b")
    net.run_s(1.0)
    assert near.writing == ["pause", "resume"]
    assert near.transport.get_write_buffer_size() == 0
    assert len(far.received) == 1502


@pytest.mark.usefixtures("small_kernels")
def test_a_reader_that_stands_still_pauses_the_sender() -> None:
    """What it has not read fills the kernels, as what is on its way does."""
    net = Net()
    near, far = net.join()
    near.transport.set_write_buffer_limits(high=500)
    net.b.loop.freeze()
    for _ in range(10):
        near.transport.write(bytes(200))
        net.run_s(0.1)
    assert near.writing == ["pause"]
    assert near.transport.get_write_buffer_size() == 1000
    net.b.loop.thaw()
    net.run_s(1.0)
    assert near.writing == ["pause", "resume"]
    assert len(far.received) == 2000


@pytest.mark.usefixtures("small_kernels")
def test_nobody_is_told_to_go_on_while_the_buffer_is_full() -> None:
    """A sender that fills the buffer again before it could be told is told when that has gone."""
    net = Net()
    near, _ = net.join()
    near.transport.set_write_buffer_limits(high=500, low=100)
    near.transport.write(bytes(2000))
    net.a.loop.freeze()
    net.run_s(1.0)
    assert near.transport.get_write_buffer_size() == 0
    net.fabric.silence("a", "b")
    near.transport.write(bytes(2000))
    net.a.loop.thaw()
    net.run_s(1.0)
    assert near.writing == ["pause"]
    net.fabric.speak("a", "b")
    net.run_s(1.0)
    assert near.writing == ["pause", "resume"]


# --- everything at once ----------------------------------------------------------------------

WRITE, WAIT, SILENCE, SPEAK, FREEZE, THAW, RESET, CLOSE, KILL, POWER = range(10)
HARMLESS = st.sampled_from([WRITE, WRITE, WRITE, WAIT, SILENCE, SPEAK, FREEZE, THAW])


ENDS: dict[int, Callable[["Net", Peer], object]] = {
    RESET: lambda net, _: net.fabric.reset("a", "b"),
    CLOSE: lambda _, near: near.transport.close(),
    KILL: lambda net, _: net.kill(net.a),
    POWER: lambda net, _: net.cut_power(net.a),
}


class Story:
    """A connection on which things happen, and everything that was sent."""

    def __init__(self, seed: int) -> None:
        self.net = Net(seed)
        self.near, self.far = self.net.join()
        self.sent = b""

    def step(self, action: int) -> None:
        """One thing happens; then a little time passes."""
        fabric = self.net.fabric
        deeds: dict[int, Callable[[], object]] = {
            WRITE: self._write,
            WAIT: partial(self.net.run_s, 0.3),
            SILENCE: partial(fabric.silence, "a", "b"),
            SPEAK: partial(fabric.speak, "a", "b"),
            FREEZE: self.net.b.loop.freeze,
            THAW: self.net.b.loop.thaw,
        }
        deeds[action]()
        self.net.run_s(0.0002)
        assert self.sent.startswith(self.far.received)

    def _write(self) -> None:
        data = bytes(len(self.sent) % 251 + place for place in range(5))
        self.near.transport.write(data)
        self.sent += data

    def calm(self) -> None:
        """Let everything arrive that can."""
        self.net.fabric.speak("a", "b")
        self.net.b.loop.thaw()
        self.net.run_s(5.0)


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.lists(HARMLESS, max_size=30),
    st.sampled_from(sorted(ENDS)),
)
def test_what_is_received_is_a_prefix_of_what_was_sent(
    seed: int, split: float, actions: list[int], end: int
) -> None:
    """At every moment; and all of it, unless the connection is reset or the power fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_SPLIT", split)
        story = Story(seed)
        for action in actions:
            story.step(action)
        ENDS[end](story.net, story.near)
        story.calm()
    assert story.sent.startswith(story.far.received)
    if end in (CLOSE, KILL):
        assert story.far.received == story.sent
