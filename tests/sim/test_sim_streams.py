"""Simulated streams: what TCP promises is kept, whatever the network does."""

from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.sim import streams
from raftkv.sim.streams import RETRANSMISSION_US
from tests.sim.stream_net import EOF, OPEN, Net, Peer

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
