"""How soon every shard has a leader again, with whole engines on simulated machines."""

import pytest

from raftkv.sim.clock import MachineClock
from raftkv.sim.machine import Machine
from raftkv.sim.scheduler import SECOND_US
from tests.sim.sim_parts import Cluster, small_options

HEARTBEAT_MS = 100
STEP_S = 0.001


def led_shards(machine: Machine) -> set[int]:
    """The shards that a node leads, as far as it knows."""
    engine = machine.serving
    groups = () if engine is None else engine.host.groups.values()
    return {group.id.shard for group in groups if group.is_leader}


def nodes_of_one_machine(nodes: int, seed: int) -> Cluster:
    """A cluster that is up, whose nodes read the same clock.

    Their timers are due in the same instants then, which is the worst for elections.
    """
    options = small_options(
        seed, nodes=nodes, replicas=nodes, shards=4, heartbeat_ms=HEARTBEAT_MS, ping_ms=250
    )
    cluster = Cluster(options, boot=False)
    for machine in cluster.machines:
        machine.drift = 0.0
        machine.clock = MachineClock(
            cluster.world.scheduler, booted_s=1000.0, rate=1.0, wall_offset_us=0
        )
        machine.boot()
    cluster.run_s(12.0)
    return cluster


def without_leader_s(cluster: Cluster, dead: Machine) -> float:
    """Kill a node; return after how many seconds others lead all that it led."""
    orphaned = led_shards(dead)
    assert orphaned
    killed_us = cluster.world.scheduler.now_us
    dead.kill()
    while not orphaned <= set().union(*map(led_shards, cluster.machines)):
        cluster.run_s(STEP_S)
    return (cluster.world.scheduler.now_us - killed_us) / SECOND_US


@pytest.mark.parametrize("nodes", [3, 5])
def test_links_slower_than_two_heartbeats_elect_a_leader(nodes: int) -> None:
    """Questions are asked again before the first answers come, and these count all the same."""
    cluster = Cluster(
        small_options(
            0, nodes=nodes, replicas=nodes, shards=1, delay_us=110_000,
            heartbeat_ms=HEARTBEAT_MS, election_ms=1000,
        )
    )  # fmt: skip
    for _ in range(2):
        cluster.run_s(10.0)
        (leader,) = [machine for machine in cluster.machines if led_shards(machine)]
        leader.kill()


@pytest.mark.parametrize(("nodes", "seeds"), [(3, range(8)), (5, range(1))])
def test_a_killed_leader_is_replaced_within_a_few_heartbeats(nodes: int, seeds: range) -> None:
    """All followers see the leader's end in the same millisecond, and still one election is enough.

    One wait of up to a heartbeat, a round of questions and a round of votes: no election time-out.
    """
    for seed in seeds:
        cluster = nodes_of_one_machine(nodes, seed)
        for machine in cluster.machines:
            if led_shards(machine):
                assert without_leader_s(cluster, machine) < 3 * HEARTBEAT_MS / 1000
                machine.boot()
                cluster.run_s(9.0)  # until it leads again what it should
        assert not cluster.broken
