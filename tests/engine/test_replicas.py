"""A group is retired while its node lives: its files and records go, the others go on."""

from pathlib import Path
from random import Random

import msgspec
import pytest

from raftkv.core.cluster_map import GroupId
from raftkv.core.operations import Command, Put
from raftkv.engine.replicas import ReplicaBusy, Replicas, ReplicaSettings
from raftkv.raft.host import GroupBounds, SnapshotPolicy
from raftkv.raft.proposals import GroupFailure, Limits
from raftkv.raft.stages import StageDurations
from raftkv.raft.timing import Timing
from raftkv.storage.wal import Wal
from tests.engine.host_world import GROUP, IDENTITY, HostWorld, Machine

OTHER = GroupId(1, 1)
POLICY = SnapshotPolicy(after_bytes=1000, after_entries=20)


def replicas_of(machine: Machine) -> Replicas:
    """Return what retires the groups of a machine."""
    clock = machine.world.loop.clock
    return Replicas(
        directory=machine.directory,
        host=machine.host,
        store=machine.store,
        clock=clock,
        random=Random(0),
        settings=ReplicaSettings(
            machine.name, Timing(0.1, 0.5, 1.0), Limits(), POLICY, GroupBounds(), StageDurations()
        ),
    )


def placed_elsewhere(world: HostWorld) -> None:
    """Let every machine go by a map that has a successor of the first group on other nodes."""
    first, *rest = world.map.groups
    moved = msgspec.structs.replace(first, generation=2, replicas=("n8", "n9"))
    newer = msgspec.structs.replace(world.map, epoch=2, groups=(moved, *rest))
    for machine in world.machines.values():
        machine.directory.take(newer)


def grow(world: HostWorld, leader: Machine) -> None:
    """Let the log of the first group grow until a snapshot is due."""
    for number in range(40):
        world.put_all(leader, b"k%d" % number)


def with_snapshots() -> tuple[HostWorld, Machine]:
    """Return machines of two groups, and the leader of the first, which has a snapshot."""
    world = HostWorld(shards=2, policy=POLICY)
    leader = world.leader()
    grow(world, leader)
    leader.keeper.check()
    world.run_until(lambda: leader.store.groups() == [GROUP])
    return world, leader


def test_group_is_retired_and_the_others_go_on() -> None:
    """Its record, its files and what the log keeps of it go; who waits for it is answered."""
    world, leader = with_snapshots()
    other = world.leader(OTHER)
    placed_elsewhere(world)
    outcomes = world.put(leader, b"in flight")
    removed: list[BaseException | None] = []
    for machine in world.machines.values():
        replicas_of(machine).retire(GROUP, removed.append)
        assert list(machine.host.groups) == [OTHER]
    world.run_until(lambda: len(removed) == 3)
    assert removed == [None] * 3
    assert outcomes == [
        GroupFailure("stopping", "group 0.1 is retired")
    ]  # it never reached the log
    assert leader.store.groups() == []
    done: list[object] = []
    other.group(OTHER).propose((Command(Put(b"k", b"v")),), done.append)
    world.run_until(lambda: done)
    assert len(done[0]) == 1  # type: ignore[arg-type] # the results of what was proposed
    world.run(3.0)  # no timer and no message of the group disturbs anybody
    for machine in world.machines.values():
        assert machine.fatal == []
        machine.kill()
        _, recovered = Wal.open(machine.disk, Path("/d/wal"), identity=IDENTITY)
        assert list(recovered) == [OTHER]


def test_group_that_the_map_places_here_is_not_retired() -> None:
    """It would come back at the next start, and have forgotten what it promised."""
    _, leader = with_snapshots()
    with pytest.raises(ValueError, match=r"places group 0\.1 on this node"):
        replicas_of(leader).retire(GROUP, lambda _: None)
    assert leader.group().is_leader


def test_group_whose_snapshot_is_being_written_is_retired_later() -> None:
    """What writes it would bring its file back."""
    world, leader = with_snapshots()
    grow(world, leader)
    leader.keeper.check()
    placed_elsewhere(world)
    with pytest.raises(ReplicaBusy):
        replicas_of(leader).retire(GROUP, lambda _: None)
    written = len(leader.snapshots)
    world.run_until(lambda: len(leader.snapshots) > written)
    removed: list[BaseException | None] = []
    replicas_of(leader).retire(GROUP, removed.append)
    world.run_until(lambda: removed)
    assert leader.store.groups() == []


def test_files_that_a_crash_left_of_a_forgotten_group_go_at_the_next_start() -> None:
    """The log has forgotten it, so nothing else knows of them; those of other groups stay."""
    world, leader = with_snapshots()
    placed_elsewhere(world)
    replicas_of(leader)._remove_leftovers({GROUP: None})  # type: ignore[dict-item] # by name
    assert leader.store.groups() == [GROUP]
    replicas_of(leader)._remove_leftovers({})
    assert leader.store.groups() == []
