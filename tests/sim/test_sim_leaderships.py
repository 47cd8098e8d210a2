"""Where leaderships go, with whole engines on simulated machines: where they do no harm."""

from types import SimpleNamespace

import pytest

from raftkv.core.operations import Command, Put, PutResult
from raftkv.raft.clock import SinceBoot
from raftkv.raft.group import Group
from raftkv.rpc.messages import Call, Facts, Failure, Reply, Response, TransferRequest, WriteRequest
from raftkv.sim.machine import Machine
from raftkv.sim.scheduler import SECOND_US
from tests.sim.sim_parts import Cluster, small_options


def three_nodes(seed: int = 1) -> Cluster:
    """A cluster of one shard that its preferred node leads."""
    cluster = Cluster(small_options(seed, nodes=3, replicas=3, heartbeat_ms=100, ping_ms=250))
    cluster.run_s(8.0)
    assert leaders(cluster) == [preferred(cluster).name]
    return cluster


def group_of(machine: Machine) -> Group:
    """The replica of the one shard."""
    assert machine.serving is not None
    return next(iter(machine.serving.host.groups.values()))


def leaders(cluster: Cluster) -> list[str]:
    """Who believes to lead the shard."""
    return [machine.name for machine in cluster.machines if group_of(machine).is_leader]


def preferred(cluster: Cluster) -> Machine:
    """Where the placement wants the leadership."""
    engine = cluster.machines[0].serving
    assert engine is not None
    return cluster.world.machines[engine.map.placement(0).preferred_leader]


def others(cluster: Cluster) -> list[Machine]:
    """The other two."""
    return [machine for machine in cluster.machines if machine is not preferred(cluster)]


def ask(cluster: Cluster, machine: Machine, request: WriteRequest | TransferRequest) -> Response:
    """Ask one node, and wait for its answer."""
    replies: list[Reply] = []
    engine = machine.serving
    assert engine is not None
    machine.loop.call_soon(engine.handle, Call(1, 4000, request), replies.append)
    for _ in range(50):
        cluster.run_s(0.1)
        if replies:
            return replies[0].response
    raise AssertionError(f"{machine.name} did not answer {request}")


PUT = WriteRequest(Command(Put(b"k", b"v")))


def test_a_preferred_node_with_a_slow_disk_is_not_made_leader_again_and_again() -> None:
    """It loses the leadership once, and keeps out of the way until its disk is fast again."""
    cluster = three_nodes()
    slow, other = preferred(cluster), others(cluster)[0]
    was = (slow.speed.sync_us, slow.speed.jitter_us)
    slow.speed.sync_us, slow.speed.jitter_us = 1_300_000, 0
    for _ in range(20):
        ask(cluster, other, PUT)
        cluster.run_s(0.3)
    term = group_of(other).term
    assert leaders(cluster) != [slow.name]
    for _ in range(12):
        assert isinstance(ask(cluster, other, PUT), PutResult)
        cluster.run_s(6.0)  # enough for the slow one to catch up
    assert group_of(other).term == term
    slow.speed.sync_us, slow.speed.jitter_us = was
    cluster.run_s(60.0)
    assert leaders(cluster) == [slow.name]


def test_leadership_is_not_moved_to_a_node_that_a_replica_cannot_reach() -> None:
    """While the path between two nodes is broken the third one leads, and all are served."""
    cluster = three_nodes()
    first, (middle, far) = preferred(cluster), others(cluster)
    group_of(first).transfer.begin(middle.name, lambda _: None)
    cluster.run_s(0.5)
    cluster.world.fabric.silence(first.name, far.name)
    cluster.world.fabric.silence(far.name, first.name)
    for _ in range(15):
        cluster.run_s(1.0)
        assert leaders(cluster) == [middle.name]
        assert isinstance(ask(cluster, far, PUT), PutResult)
    cluster.world.fabric.speak(first.name, far.name)
    cluster.world.fabric.speak(far.name, first.name)
    cluster.run_s(10.0)
    assert leaders(cluster) == [first.name]


def test_a_replica_that_does_not_reach_the_leader_is_served_through_another_one() -> None:
    """Whoever asks it hears of the broken path by a second of waiting at most."""
    cluster = three_nodes()
    first, (_, far) = preferred(cluster), others(cluster)
    cluster.world.fabric.silence(first.name, far.name)
    cluster.world.fabric.silence(far.name, first.name)
    cluster.run_s(3.0)
    assert leaders(cluster) == [first.name]
    assert isinstance(ask(cluster, far, PUT), PutResult)
    began_us = cluster.world.scheduler.now_us
    assert isinstance(ask(cluster, far, PUT), PutResult)
    assert cluster.world.scheduler.now_us - began_us < 0.2 * SECOND_US


def test_a_leadership_stays_where_an_operator_puts_it() -> None:
    """Not for three seconds only: until its time is up, or until that node stops."""
    cluster = three_nodes()
    first, (second, third) = preferred(cluster), others(cluster)
    asked = ask(cluster, third, TransferRequest(0, second.name, 60.0))
    assert isinstance(asked, Facts)
    cluster.run_s(30.0)
    assert leaders(cluster) == [second.name]
    cluster.run_s(45.0)
    assert leaders(cluster) == [first.name]
    ask(cluster, third, TransferRequest(0, second.name))
    cluster.run_s(200.0)
    assert leaders(cluster) == [second.name]
    assert isinstance(ask(cluster, third, TransferRequest(0, second.name)), Facts), "leads already"
    second.kill()
    second.boot()
    cluster.run_s(30.0)
    assert leaders(cluster) == [first.name]


def test_a_leadership_that_an_operator_lets_go_is_balanced_again() -> None:
    """Without a target it goes to the preferred node, and back to it after a failure."""
    cluster = three_nodes()
    first, (second, third) = preferred(cluster), others(cluster)
    ask(cluster, third, TransferRequest(0, second.name))
    cluster.run_s(10.0)
    assert leaders(cluster) == [second.name]
    ask(cluster, third, TransferRequest(0))
    cluster.run_s(10.0)
    assert leaders(cluster) == [first.name]
    for machine in cluster.machines:
        assert machine.serving is not None
        assert machine.serving._balancer.pinned() == {}


def test_a_request_that_slept_with_its_machine_is_not_served_when_it_wakes() -> None:
    """Who sent it has asked elsewhere long ago, and its idempotency key is forgotten perhaps."""
    cluster = three_nodes()
    first, (second, third) = preferred(cluster), others(cluster)
    for machine in (first, third):
        machine.kill()
    cluster.run_s(3.0)
    answers = cluster.begin(PUT, second)  # waits for a leader, for 2 s at most
    cluster.run_s(0.1)
    clock, engine = second.clock, second.serving
    assert engine is not None
    with pytest.MonkeyPatch.context() as suspended:
        suspended.setattr(
            engine.router._clock, "monotonic", lambda: clock.boottime() + 3600.0, raising=True
        )
        for machine in (first, third):
            machine.boot()
        cluster.run_s(5.0)
    (answer,) = answers
    assert isinstance(answer, Failure)
    assert answer.definite
    assert leaders(cluster)


def test_requests_are_timed_by_a_clock_that_does_not_stop_in_a_suspend() -> None:
    """All others are: nobody is deposed for the time that a machine slept."""
    cluster = three_nodes()
    engine = cluster.machines[0].serving
    assert engine is not None
    assert isinstance(engine.router._clock, SinceBoot)
    asked: list[str] = []
    clock = SimpleNamespace(
        monotonic=lambda: asked.append("monotonic"),
        boottime=lambda: asked.append("boottime"),
        time_us=lambda: 0,
    )
    SinceBoot(clock).monotonic()
    assert asked == ["boottime"]
