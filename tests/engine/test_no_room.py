"""A node without room for more log goes on: it takes no entries, and does not stop."""

from raftkv.raft.group import Group
from raftkv.raft.host import SnapshotPolicy
from tests.engine.host_world import HostWorld, Machine

ROLLS = 64 * 1024 // 2000 * 3
"""Writes of 2 KB, key and value, that fill the log of these tests several times over."""


def fill_disk(machine: Machine) -> None:
    """Leave no space for another segment, spare and all."""
    machine.host.look_after_log()
    machine.world.run(0.1)
    machine.disk.capacity_bytes = machine.disk.used_bytes()


def heal(machine: Machine) -> None:
    """Give it as much space as it wants, and the second in which it notices."""
    machine.disk.capacity_bytes = None
    machine.host.look_after_log()
    machine.world.run(0.1)
    machine.host.look_after_log()
    machine.world.run(1.0)


def followers(world: HostWorld) -> list[Machine]:
    """All machines but the leader."""
    leader = world.leader()
    return [machine for machine in world.machines.values() if machine is not leader]


def put_much(world: HostWorld, machine: Machine, prefix: str) -> None:
    """Write more than a log has room for, housekeeping as in a node's life."""
    for number in range(ROLLS):
        world.put_all(machine, f"{prefix}{number}".encode() + bytes(1000))
        for other in world.machines.values():
            other.host.look_after_log()


def last_index(group: Group) -> int:
    """Up to where a replica has the log."""
    return group.last_index


def test_follower_without_room_takes_no_entries_and_lives() -> None:
    """The others go on without it; with space again it catches up by itself."""
    world = HostWorld(policy=SnapshotPolicy(after_bytes=1 << 40, after_entries=1 << 40))
    leader, (full, _) = world.leader(), followers(world)
    elections = leader.group().elections
    fill_disk(full)
    put_much(world, leader, "k")
    assert not full.fatal, full.fatal
    assert not full.host.has_space()
    assert full.group().last_index < leader.group().last_index - ROLLS // 3
    assert world.leader() is leader
    assert leader.group().elections == elections, "a full follower must not disturb its leader"
    assert full.group().leader == leader.name, "it is alive, and hears its leader"

    heal(full)
    world.assert_agreed()
    assert full.group().last_index == leader.group().last_index


def test_what_a_full_follower_is_not_sent_again_and_again() -> None:
    """While it takes no entries it costs its leader heartbeats, not the same megabytes."""
    world = HostWorld(policy=SnapshotPolicy(after_bytes=1 << 40, after_entries=1 << 40))
    leader, (full, _) = world.leader(), followers(world)
    fill_disk(full)
    put_much(world, leader, "k")
    world.run(0.5)
    sent = 0
    send = world.send

    def count(sender: str, to: str, channel: int, payload: bytes) -> bool:
        nonlocal sent
        sent += len(payload) if (sender, to) == (leader.name, full.name) else 0
        return send(sender, to, channel, payload)

    world.send = count  # type: ignore[method-assign]
    world.run(2.0)
    assert sent < 20_000
    heal(full)
    world.assert_agreed()


def test_unit_that_finds_no_room_waits_for_it() -> None:
    """What was in flight when the disk filled up is not in the log and not lost: it waits."""
    world = HostWorld(policy=SnapshotPolicy(after_bytes=1 << 40, after_entries=1 << 40))
    leader = world.leader()
    machines = list(world.machines.values())
    for machine in machines:
        fill_disk(machine)
    # All of it is accepted at once, before anybody notices that there is no room.
    outcomes = world.put(leader, *(f"k{number}".encode() + bytes(1000) for number in range(ROLLS)))
    world.run(0.3)
    assert not any(machine.fatal for machine in machines)
    assert len(outcomes) < ROLLS
    assert not any(machine.host.has_space() for machine in machines)
    for machine in machines:
        heal(machine)
    world.run(3.0)
    world.put_all(world.leader(), b"healed")
    world.assert_agreed()
    assert not any(machine.fatal for machine in machines)
    assert len(outcomes) == ROLLS
