"""The proxy between nodes: real sockets, each direction by itself."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from raftkv.chaos.errors import ChaosError
from raftkv.chaos.faults.links import cuts
from raftkv.chaos.links import Link, Links, merged
from raftkv.chaos.proxy import Rule
from raftkv.chaos.waiting import wait_until
from raftkv.testing.ports import PortReservation

THERE, BACK = ("n1", "n2"), ("n2", "n1")
BLOCKED = Rule(blocked=True)
WAIT_S = 20.0


@dataclass
class World:
    """A link from n1 to n2 with a connection over it: ``near`` is n1's end, ``far`` is n2's."""

    links: Links
    port: int
    listener: socket.socket
    near: socket.socket
    far: socket.socket

    def connect(self) -> socket.socket:
        """One more connection of n1."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def accept(self) -> socket.socket:
        """The other end of the next connection, at n2."""
        far, _ = self.listener.accept()
        far.settimeout(WAIT_S)
        return far

    def held(self, pair: tuple[str, str]) -> int:
        """Bytes held so far."""
        return self.links.stats()[pair].held_bytes


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    assert wait_until(condition, WAIT_S, poll_s=0.01)


@pytest.fixture
def world() -> Iterator[World]:
    """A proxy process with one link."""
    with contextlib.ExitStack() as stack:
        reservation = PortReservation(2)
        stack.callback(reservation.release)
        port, real_port = reservation.ports
        listener = stack.enter_context(socket.create_server(("127.0.0.1", real_port)))
        listener.settimeout(WAIT_S)
        links = Links([Link("n1", "n2", port, real_port)], seed=1)
        stack.callback(links.close)
        near = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        stack.enter_context(near)
        far, _ = listener.accept()
        far.settimeout(WAIT_S)
        stack.enter_context(far)
        yield World(links, port, listener, near, far)


def test_bytes_pass_both_ways(world: World) -> None:
    """Without a rule the proxy is a wire."""
    world.near.sendall(b"there")
    assert world.far.recv(100) == b"there"
    world.far.sendall(b"back")
    assert world.near.recv(100) == b"back"


@pytest.mark.parametrize("cut", [THERE, BACK])
def test_one_direction_is_cut_and_the_other_is_not(world: World, cut: tuple[str, str]) -> None:
    """What is sent into the cut is held, and comes when it is mended, as TCP would have it."""
    silent, talking = (world.near, world.far) if cut == THERE else (world.far, world.near)
    world.links.add([cut], BLOCKED)
    silent.sendall(b"unheard")
    until(lambda: world.held(cut) == len(b"unheard"))
    talking.sendall(b"heard")
    assert silent.recv(100) == b"heard"
    talking.settimeout(0.05)
    with pytest.raises(TimeoutError):
        talking.recv(100)
    talking.settimeout(WAIT_S)
    world.links.remove([cut], BLOCKED)
    assert talking.recv(100) == b"unheard"


@pytest.mark.parametrize("cut", [THERE, BACK])
def test_no_connection_comes_about_over_a_cut(world: World, cut: tuple[str, str]) -> None:
    """It takes both directions to connect."""
    world.links.add([cut], BLOCKED)
    with world.connect() as second:
        until(lambda: world.links.stats()[cut].held_connections == 1)
        world.listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            world.accept()
        world.listener.settimeout(WAIT_S)
        world.links.remove([cut], BLOCKED)
        with world.accept() as far:
            second.sendall(b"late")
            assert far.recv(100) == b"late"


def test_a_slow_link_takes_its_time(world: World) -> None:
    """Each chunk waits for at least the shortest delay."""
    world.links.add([THERE], Rule(delay_ms=(80.0, 90.0)))
    began = time.monotonic()
    world.near.sendall(b"slowly")
    assert world.far.recv(100) == b"slowly"
    assert time.monotonic() - began >= 0.08
    assert world.links.stats()[THERE].delayed == 1


def test_a_lossy_link_stalls_what_follows_too(world: World) -> None:
    """A lost packet is sent again by TCP, and all behind it wait: nothing is lost or reordered."""
    world.links.add([THERE], Rule(stall_share=1.0, stall_ms=1.0))
    sent = [f"{number:03d}".encode() for number in range(20)]
    for chunk in sent:
        world.near.sendall(chunk)
    received = b""
    while len(received) < 60:
        received += world.far.recv(100)
    assert received == b"".join(sent)
    assert world.links.stats()[THERE].stalled >= 1


def test_a_resetting_link_ends_connections_at_both_ends(world: World) -> None:
    """With a reset, not with an orderly end."""
    world.links.add([THERE], Rule(reset_share=1.0))
    world.near.sendall(b"last words")
    for end in (world.near, world.far):
        with pytest.raises(ConnectionResetError):
            end.recv(100)
    assert world.links.stats()[THERE].resets == 1


def test_an_end_that_closes_is_seen_at_the_other(world: World) -> None:
    """An orderly end stays one."""
    world.near.close()
    assert world.far.recv(100) == b""


@pytest.mark.parametrize("cut", [THERE, BACK])
def test_an_end_is_not_seen_through_a_cut(world: World, cut: tuple[str, str]) -> None:
    """A node that dies behind a partition leaves its peers with half a connection."""
    dying, surviving = (world.near, world.far) if cut == THERE else (world.far, world.near)
    world.links.add([cut], BLOCKED)
    dying.close()
    until(lambda: world.links.stats()[cut].held_connections == 1)
    surviving.settimeout(0.05)
    with pytest.raises(TimeoutError):
        surviving.recv(100)
    surviving.settimeout(WAIT_S)
    world.links.remove([cut], BLOCKED)
    assert surviving.recv(100) == b""


def test_a_node_that_is_gone_is_noticed_by_the_one_that_dials(world: World) -> None:
    """As a refused connection would be."""
    world.listener.close()
    with world.connect() as second, contextlib.suppress(ConnectionResetError):
        assert second.recv(100) == b""


def test_rules_of_several_faults_add_up(world: World) -> None:
    """Mending one fault leaves the other one in force."""
    slow = Rule(delay_ms=(1.0, 2.0))
    world.links.add([THERE, BACK], BLOCKED)
    world.links.add([THERE], slow)
    world.links.remove([THERE, BACK], BLOCKED)
    world.near.sendall(b"slow")
    assert world.far.recv(100) == b"slow"
    assert world.links.stats()[THERE].delayed == 1


def test_merged_rules_are_the_worst_of_each() -> None:
    """And none at all is no rule."""
    rules = (Rule(delay_ms=(1.0, 5.0)), Rule(reset_share=0.1), Rule(blocked=True))
    assert merged(rules) == Rule(blocked=True, delay_ms=(1.0, 5.0), reset_share=0.1)
    assert merged(()) == Rule()


def test_a_proxy_that_died_is_told_of() -> None:
    """A run must not go on with links that nobody controls."""
    links = Links([], seed=1)
    links._process.kill()
    links._process.wait()
    with pytest.raises(ChaosError, match="has died"):
        links.stats()
    links.close()


def test_commands_of_several_threads_do_not_mix() -> None:
    """Each gets the answer to its own question."""
    reservation = PortReservation(2)
    links = Links([Link("a", "b", *reservation.ports)], seed=1)
    faults: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(50):
                links.add([("a", "b")], BLOCKED)
                links.stats()
                links.remove([("a", "b")], BLOCKED)
        except BaseException as error:  # noqa: BLE001 -- raised below
            faults.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    links.close()
    reservation.release()
    assert not faults


def both(pairs: list[tuple[str, str]]) -> set[frozenset[str]]:
    """The links without their directions."""
    return {frozenset(pair) for pair in pairs}


@pytest.mark.parametrize(
    ("shape", "nodes", "links"),
    [
        ("isolate", "abc", {"ab", "ac"}),
        ("isolate-leader", "abcde", {"ab", "ac", "ad", "ae"}),
        ("split", "abc", {"ab", "ac"}),
        ("split", "abcde", {"ac", "ad", "ae", "bc", "bd", "be"}),
        ("bridge", "abc", {"ab"}),
        ("bridge", "abcde", {"ac", "ad", "bc", "bd"}),
        ("ring", "abc", {"ab"}),
        ("ring", "abcde", {"ac", "ad", "bd", "be", "ce"}),
    ],
)
def test_the_shapes_of_partitions(shape: str, nodes: str, links: set[str]) -> None:
    """Which links are cut."""
    assert both(cuts(shape, tuple(nodes))) == {frozenset(link) for link in links}
