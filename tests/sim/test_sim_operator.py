"""The operator of a simulated cluster."""

from itertools import permutations
from random import Random
from typing import cast

import pytest
from sim_parts import Bench, Cluster, small_options

from raftkv.sim.client import Client
from raftkv.sim.faults import FAULTS, Stage
from raftkv.sim.invariants import Invariants
from raftkv.sim.operator import Operator


@pytest.mark.parametrize("seed", range(5))
def test_what_was_healed_stays_whole(seed: int) -> None:
    """A fault that comes in many pieces does no more harm once all was healed."""
    cluster = Cluster(small_options(nodes=3, replicas=3), boot=False)
    world = cluster.world
    loop = Bench(scheduler=world.scheduler).loop
    stage = Stage(
        world,
        cast("Client", None),
        later=loop.call_later,
        start=loop.create_task,
        damaged=lambda _: None,
    )
    operator = Operator(stage, [], Invariants(log_entries_max=1000), loop)
    FAULTS["flaky_link"](stage, Random(seed))
    operator.heal()
    for _ in range(250):
        cluster.run_s(0.1)
        assert not any(world.fabric.path(*pair).silent for pair in permutations(world.names, 2))
