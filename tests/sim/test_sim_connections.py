"""Simulated connections: how they are made, how they end, and how they hold up a sender."""

from functools import partialmethod

import pytest

from raftkv.sim.fabric import Fabric
from tests.sim.stream_net import EOF, OPEN, Net, Peer

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
    monkeypatch.setattr(Fabric, "__init__", partialmethod(Fabric.__init__, kernel_bytes=1000))


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
