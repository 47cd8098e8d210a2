"""The simulated network: order, loss, and who is told what."""

from collections.abc import Callable
from random import Random

import pytest

from raftkv.sim.network import Link, SimNetwork


class Recorder:
    """A node that remembers what the network called, and may answer."""

    def __init__(self, answer: Callable[[str, str], object] | None = None) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self._answer = answer

    def on_message(self, peer: str, payload: str) -> None:
        """Remember, then answer if there is something to answer."""
        self.calls.append(("message", peer, payload))
        if self._answer is not None:
            self._answer(peer, payload)

    def on_connected(self, peer: str) -> None:
        """Remember."""
        self.calls.append(("connected", peer, ""))

    def on_disconnected(self, peer: str) -> None:
        """Remember."""
        self.calls.append(("disconnected", peer, ""))

    def take(self) -> list[tuple[str, str, str]]:
        """The calls since the last take."""
        taken, self.calls = self.calls, []
        return taken


def network_of(*names: str) -> tuple[SimNetwork[str], dict[str, Recorder]]:
    """A fully connected network whose nodes have forgotten that they were connected."""
    network: SimNetwork[str] = SimNetwork()
    nodes = {name: Recorder() for name in names}
    for name, node in nodes.items():
        network.attach(name, node)
    network.connect_all()
    for node in nodes.values():
        node.take()
    return network, nodes


def test_nothing_arrives_by_itself() -> None:
    """Sending queues; only a deliver call hands the message over."""
    network, nodes = network_of("a", "b")
    assert network.send("a", "b", "x")
    assert nodes["b"].take() == []
    assert network.queued("a", "b") == ("x",)
    assert network.deliver_all() == 1
    assert nodes["b"].take() == [("message", "a", "x")]


def test_one_direction_stays_in_order() -> None:
    """Whatever the schedule, messages of one direction arrive in the order of sending, once."""
    network, nodes = network_of("a", "b", "c")
    random = Random(7)
    for number in range(50):
        network.send("a", "c", f"a{number}")
        network.send("b", "c", f"b{number}")
    while network.step(random):
        pass
    calls = nodes["c"].take()
    assert [payload for _, peer, payload in calls if peer == "a"] == [f"a{n}" for n in range(50)]
    assert [payload for _, peer, payload in calls if peer == "b"] == [f"b{n}" for n in range(50)]


def test_steps_mix_links_and_repeat_with_the_seed() -> None:
    """The same seed gives the same interleaving of links; another seed another one."""

    def order(seed: int) -> list[Link | None]:
        network, _ = network_of("a", "b", "c")
        for number in range(20):
            for source, target in (("a", "b"), ("b", "c"), ("c", "a")):
                network.send(source, target, str(number))
        random = Random(seed)
        return [network.step(random) for _ in range(60)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert len(set(order(1))) == 3


def test_deliver_follows_the_order_of_sending_over_all_links() -> None:
    """Without a seed, the oldest deliverable message of the whole network goes first."""
    network, nodes = network_of("a", "b", "c")
    network.send("c", "a", "first")
    network.send("b", "a", "second")
    network.deliver(1)
    assert nodes["a"].take() == [("message", "c", "first")]


def test_answers_are_delivered_too() -> None:
    """deliver_all goes on until the nodes have nothing more to say."""
    network: SimNetwork[str] = SimNetwork()
    network.attach("a", Recorder())
    b = Recorder(answer=lambda peer, payload: network.send("b", peer, payload + "!"))
    network.attach("b", b)
    network.connect("a", "b")
    network.send("a", "b", "hello")
    assert network.deliver_all() == 2
    assert network.trace[-1].payload == "hello!"


def test_endless_exchange_is_an_error() -> None:
    """Two nodes that answer each other for ever fail the test instead of hanging it."""
    network: SimNetwork[str] = SimNetwork()
    for name in ("a", "b"):

        def echo(peer: str, payload: str, name: str = name) -> None:
            network.send(name, peer, payload)

        network.attach(name, Recorder(answer=echo))
    network.connect("a", "b")
    network.send("a", "b", "ping")
    with pytest.raises(RuntimeError, match="did not come to rest"):
        network.deliver_all()


def test_held_direction_waits_and_the_other_goes_on() -> None:
    """A hold stops one direction only, and a release loses nothing."""
    network, nodes = network_of("a", "b")
    network.hold("a", "b")
    network.send("a", "b", "x")
    network.send("b", "a", "y")
    assert network.deliver_all() == 1
    assert nodes["b"].take() == []
    assert network.deliver_link("a", "b", 1) == 1  # by name, even while held
    network.send("a", "b", "z")
    network.release("a", "b")
    network.deliver_all()
    assert [payload for _, _, payload in nodes["b"].take()] == ["x", "z"]


def test_cut_loses_what_was_in_flight_and_tells_both_sides() -> None:
    """After a cut both sides know, nothing queued arrives, and sending says so."""
    network, nodes = network_of("a", "b")
    network.send("a", "b", "x")
    network.cut("a", "b")
    assert nodes["a"].take() == [("disconnected", "b", "")]
    assert nodes["b"].take() == [("disconnected", "a", "")]
    assert not network.send("a", "b", "y")
    network.connect("a", "b")
    assert network.deliver_all() == 0


def test_cut_and_connect_tell_each_side_once() -> None:
    """Repeating a cut or a connect calls nobody."""
    network, nodes = network_of("a", "b")
    network.connect("a", "b")
    assert nodes["a"].take() == []
    network.cut("a", "b")
    network.cut("a", "b")
    assert nodes["a"].take() == [("disconnected", "b", "")]


def test_half_open_link_is_noticed_by_one_side() -> None:
    """The side that does not notice goes on sending into nothing until the link is made anew."""
    network, nodes = network_of("a", "b")
    network.half_open("a", "b")
    assert nodes["a"].take() == []
    assert nodes["b"].take() == [("disconnected", "a", "")]
    assert network.send("a", "b", "lost")
    assert not network.send("b", "a", "refused")
    assert network.deliver_all() == 0
    network.connect("a", "b")
    assert nodes["a"].take() == [("disconnected", "b", ""), ("connected", "b", "")]
    assert nodes["b"].take() == [("connected", "a", "")]


def test_partition_separates_sides_and_heals_within() -> None:
    """Nodes of one side are connected, nodes of different sides are not."""
    network, _ = network_of("a", "b", "c")
    network.partition("a", "bc")
    assert not network.connected("a", "b")
    assert not network.connected("a", "c")
    assert network.connected("b", "c")
    network.partition("abc")
    assert network.connected("a", "c")


def test_isolate_cuts_every_link_of_a_node() -> None:
    """An isolated node has no links; the others keep theirs."""
    network, _ = network_of("a", "b", "c")
    network.isolate("b")
    assert not network.connected("a", "b")
    assert not network.connected("c", "b")
    assert network.connected("a", "c")


def test_dead_node_is_not_called_and_its_messages_are_lost() -> None:
    """A detached node gets nothing more, and its peers are told that it is gone."""
    network, nodes = network_of("a", "b")
    network.send("a", "b", "x")
    network.send("b", "a", "y")
    network.detach("a")
    assert network.deliver_all() == 0
    assert nodes["a"].take() == []
    assert nodes["b"].take() == [("disconnected", "a", "")]


def test_silent_death_leaves_the_peers_believing() -> None:
    """After a power failure peers go on sending; they learn of it from the next life's link."""
    network, nodes = network_of("a", "b")
    network.detach("a", silently=True)
    assert nodes["b"].take() == []
    assert network.send("b", "a", "x")
    reborn = Recorder()
    network.attach("a", reborn)
    assert network.deliver_all() == 0
    network.connect("a", "b")
    assert reborn.take() == [("connected", "b", "")]
    assert nodes["b"].take() == [("disconnected", "a", ""), ("connected", "a", "")]


def test_trace_tells_the_fate_of_every_message() -> None:
    """Each message is in the trace as sent and as delivered or lost, under one number."""
    network, _ = network_of("a", "b")
    network.trace.clear()
    network.send("a", "b", "x")
    network.send("a", "b", "y")
    network.deliver(1)
    network.cut("a", "b")
    told = [(event.what, event.payload) for event in network.trace]
    assert told == [
        ("send", "x"),
        ("send", "y"),
        ("deliver", "x"),
        ("lose", "y"),
        ("disconnect", None),
        ("disconnect", None),
    ]
    assert network.trace[0].number == network.trace[2].number
