"""The operator of a simulated cluster."""

from itertools import permutations
from random import Random
from types import SimpleNamespace
from typing import cast

import pytest
from sim_parts import Bench, Cluster, small_options

from raftkv.core.cluster_map import GroupId
from raftkv.engine.engine import Engine
from raftkv.sim.client import Client, ClientNetwork
from raftkv.sim.faults import FAULTS
from raftkv.sim.invariants import Invariants
from raftkv.sim.loop import SimLoop
from raftkv.sim.operator import Operator
from raftkv.sim.stage import Stage


def stage_of(cluster: Cluster, loop: SimLoop) -> Stage:
    """The stage of an operator who runs on ``loop``."""
    scheduler = cluster.world.scheduler
    client = Client(
        0,
        ClientNetwork(scheduler, loop, Random(1)),
        lambda: cluster.machines,
        Random(2),
        idempotent=False,
        now_s=lambda: scheduler.now_s,
    )
    return Stage(
        cluster.world,
        client,
        later=loop.call_later,
        start=loop.create_task,
        damaged=lambda _: None,
    )


@pytest.mark.parametrize("seed", range(5))
def test_what_was_healed_stays_whole(seed: int) -> None:
    """A fault that comes in many pieces does no more harm once all was healed."""
    cluster = Cluster(small_options(nodes=3, replicas=3), boot=False)
    world = cluster.world
    loop = Bench(scheduler=world.scheduler).loop
    stage = stage_of(cluster, loop)
    operator = Operator(stage, [], Invariants(log_entries_max=1000), loop)
    FAULTS["flaky_link"](stage, Random(seed))
    operator.heal()
    for _ in range(250):
        cluster.run_s(0.1)
        assert not any(world.fabric.path(*pair).silent for pair in permutations(world.names, 2))


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_a_power_cut_that_is_due_waits_for_the_machine_itself(kind: str) -> None:
    """A fault is done to a machine, not by it: it is not the operation that the cut waits for."""
    cluster = Cluster(small_options(nodes=3, replicas=3), boot=False)
    loop = Bench(scheduler=cluster.world.scheduler).loop
    for machine in cluster.world.machines.values():
        machine.disk.crash_at = machine.disk.operations + 1
    FAULTS[kind](stage_of(cluster, loop), Random(1))
    loop.end()


class Shards:
    """Many shards under load: in each a follower that has not heard of the newest commit yet."""

    def __init__(self, shards: int) -> None:
        self.cluster = Cluster(small_options(nodes=3, replicas=3), boot=False)
        self.invariants = Invariants(log_entries_max=1000)
        self.newest = dict.fromkeys((GroupId(shard, 1) for shard in range(shards)), 10)
        self.invariants.all_committed = lambda: dict(self.newest)  # type: ignore[method-assign]
        self.invariants.committed = self.newest.__getitem__  # type: ignore[method-assign, assignment]
        self.machines = list(self.cluster.world.machines.values())
        self.groups = {
            machine.name: {
                group: SimpleNamespace(
                    id=group, is_ready=True, applied_index=10,
                    journal=SimpleNamespace(durable_index=10),
                )
                for group in self.newest
            }
            for machine in self.machines
        }  # fmt: skip
        for machine in self.machines:
            groups = list(self.groups[machine.name].values())
            replicas = SimpleNamespace(groups=lambda groups=groups: groups)
            machine.engine = cast("Engine", SimpleNamespace(replicas=replicas))
            machine._loop = cast("SimLoop", object())
        loop = Bench(scheduler=self.cluster.world.scheduler).loop
        self.stage = stage_of(self.cluster, loop)
        self.operator = Operator(self.stage, [], self.invariants, loop)

    def write(self, shard: int, *, heard_by: int) -> None:
        """Commit one more entry, which all have on disk and some have applied."""
        group = GroupId(shard, 1)
        self.newest[group] += 1
        for number, machine in enumerate(self.machines):
            replica = self.groups[machine.name][group]
            replica.journal.durable_index += 1
            replica.applied_index += number < heard_by


def test_a_cluster_under_load_has_come_to_rest_when_it_has_what_was_committed() -> None:
    """However much is committed meanwhile: some follower is always about to hear of it."""
    shards = Shards(24)
    goal = shards.operator.goal()
    for shard in range(24):
        shards.write(shard, heard_by=1)
        assert shards.operator.has_reached(goal)
        assert not shards.operator.is_settled()


@pytest.mark.parametrize("lacks", ["entry", "readiness", "process"])
def test_a_replica_that_stays_behind_is_no_rest(lacks: str) -> None:
    """One of the many is enough, unless it is on a machine that is left as it is."""
    shards = Shards(24)
    goal = shards.operator.goal()
    machine = shards.machines[2]
    replica = shards.groups[machine.name][GroupId(17, 1)]
    if lacks == "entry":
        replica.applied_index -= 1
    elif lacks == "readiness":
        replica.is_ready = False
    else:
        machine._loop = None
    assert not shards.operator.has_reached(goal)
    assert shards.operator.has_reached(goal, frozenset({machine.name}))
    shards.stage.lost.add(machine.name)
    assert shards.operator.has_reached(goal)


def test_a_bit_flips_when_every_disk_holds_what_is_committed() -> None:
    """Applied is what a replica has heard of; what the others must hold is the entries."""
    shards = Shards(2)
    shards.write(0, heard_by=1)
    assert shards.operator._is_stored()
    shards.groups["n3"][GroupId(1, 1)].journal.durable_index -= 1
    assert not shards.operator._is_stored()
