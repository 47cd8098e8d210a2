"""A simulated node that was set up with another map than the others: it must not disturb them."""

from dataclasses import replace
from random import Random

import msgspec
import pytest

from raftkv.core.operations import Command, GetResult, Put, PutResult
from raftkv.core.shard.outcomes import MemoryLimits
from raftkv.engine import agreement
from raftkv.rpc.messages import Failure, GetRequest, WriteRequest
from raftkv.sim.machine import DATA, Machine
from tests.sim.sim_parts import Cluster, small_options


def set_up(odd: dict[str, int], *, name: str = "n3", shards: int = 4) -> Cluster:
    """Return three nodes that are up, one of which has other options of its own."""
    cluster = Cluster(small_options(nodes=3, replicas=3, shards=shards), boot=False)
    for machine in cluster.machines:
        if machine.name == name:
            options = msgspec.structs.replace(machine.config.cluster, **odd)
            machine.config = msgspec.structs.replace(machine.config, cluster=options)
        machine.boot()
    cluster.run_s(10.0)
    return cluster


def machine_of(cluster: Cluster, name: str) -> Machine:
    """Return a machine by name."""
    return cluster.world.machines[name]


@pytest.mark.parametrize("odd", [{"replicas": 1}, {"replicas": 2}, {"shards": 5}, {"shards": 1}])
@pytest.mark.parametrize("name", ["n1", "n2", "n3"])
def test_an_odd_node_serves_nothing_and_the_others_everything(
    odd: dict[str, int], name: str
) -> None:
    """Whatever it lacks and whoever dials; its refusals are definite and say why."""
    cluster = set_up(odd, name=name)
    right = next(m for m in cluster.machines if m.name != name)
    for number in range(8):
        key = b"key %d" % number
        put = WriteRequest(Command(Put(key, b"value")))
        assert isinstance(cluster.ask(put, right), PutResult)
        for request in (put, GetRequest(key), GetRequest(key, consistency="stale")):
            refused = cluster.ask(request, machine_of(cluster, name))
            assert isinstance(refused, Failure)
            assert (refused.code, refused.definite) == ("unavailable", True)
            assert f"cluster.{next(iter(odd))} is " in refused.detail
    assert not machine_of(cluster, name).leads
    for machine in cluster.machines:
        engine = machine.serving
        assert engine is not None
        linked = {m.name for m in cluster.machines} - {name, machine.name}
        assert engine.links.connected == (set() if machine.name == name else linked)
    assert cluster.broken == []


def test_a_node_that_comes_alone_and_odd_acknowledges_nothing() -> None:
    """By its own map it has the only replica of a shard, and nobody is there to contradict."""
    cluster = Cluster(small_options(nodes=3, replicas=3, shards=4), boot=False)
    odd = machine_of(cluster, "n3")
    options = msgspec.structs.replace(odd.config.cluster, replicas=1)
    odd.config = msgspec.structs.replace(odd.config, cluster=options)
    odd.boot()
    cluster.run_s(10.0)
    assert not odd.leads
    for number in range(8):
        answer = cluster.ask(WriteRequest(Command(Put(b"key %d" % number, b"v"))), odd)
        assert isinstance(answer, Failure)
        assert answer.definite


def test_a_node_that_was_agreed_with_leads_alone_after_a_loss_of_power() -> None:
    """Shards with one replica do not wait for nodes that hold nothing of them."""
    cluster = Cluster(small_options(nodes=3, replicas=1, shards=3))
    for machine in cluster.machines:
        machine.cut_power(Random(1))
    last = machine_of(cluster, "n3")
    last.boot()
    cluster.run_s(10.0)
    assert last.leads
    assert last.disk.exists(DATA / agreement.NAME)


def test_an_odd_node_that_is_set_up_anew_joins() -> None:
    """A corrected configuration and an empty data directory are all that it takes."""
    cluster = set_up({"replicas": 1})
    odd = machine_of(cluster, "n3")
    odd.kill()
    odd.config = msgspec.structs.replace(
        odd.config, cluster=machine_of(cluster, "n1").config.cluster
    )
    odd.replace_disk()
    odd.boot()
    cluster.run_s(10.0)
    assert isinstance(cluster.ask(WriteRequest(Command(Put(b"k", b"v"))), odd), PutResult)
    answer = cluster.ask(GetRequest(b"k"), machine_of(cluster, "n1"))
    assert isinstance(answer, GetResult)
    assert answer.entry is not None


def test_a_node_that_remembers_less_than_the_others_does_not_join() -> None:
    """What is compared are the limits that its groups go by, whoever has set them."""
    cluster = Cluster(small_options(nodes=3, replicas=3, shards=2), boot=False)
    odd = machine_of(cluster, "n3")
    memory = MemoryLimits(sessions_max=7)
    groups = msgspec.structs.replace(odd._bounds.groups, memory=memory)
    odd._bounds = replace(odd._bounds, groups=groups)
    for machine in cluster.machines:
        machine.boot()
    cluster.run_s(10.0)
    refused = cluster.ask(GetRequest(b"key"), odd)
    assert isinstance(refused, Failure)
    assert "memory.sessions_max is " in refused.detail
