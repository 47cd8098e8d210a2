"""The operator of a simulated cluster."""

from itertools import permutations
from random import Random

import pytest
from sim_parts import Bench, Cluster, small_options

from raftkv.sim.client import Client, Doors
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
        Doors(scheduler, loop, Random(1)),
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
