"""A follower that was away while many groups wrote: all catch up, and no link carries too much."""

from collections.abc import Iterator

import pytest

from raftkv.core.cluster_map import GroupId
from raftkv.core.operations import Command, Put
from raftkv.raft.group import Group
from raftkv.raft.messages import AppendEntries, AppendResponse
from raftkv.raft.windows import PEER_WINDOW_BYTES, SHARE_BYTES, PeerWindow
from tests.engine.host_world import HostWorld

GROUPS = 24
VALUE = bytes(256 * 1024)
ROUNDS = 8  # so that the groups' own windows come to three times the shared one


def write(world: HostWorld, group_id: GroupId, value: bytes) -> None:
    """Put a value into a group, acknowledged by whoever is there."""
    outcomes: list[object] = []
    command = Command(Put(b"key", value))
    world.leader(group_id).group(group_id).propose((command,), outcomes.append)
    world.run_until(lambda: outcomes)


def caught_up(world: HostWorld, name: str) -> list[GroupId]:
    """Return the groups of which a machine has all that their leader has."""
    machine = world.machines[name]
    return [
        group_id
        for group_id in world.group_ids
        if machine.group(group_id).applied_index
        == world.leader(group_id).group(group_id).applied_index
    ]


def behind(rounds: int) -> HostWorld:
    """Make a world whose ``n3`` was away while all groups wrote."""
    world = HostWorld(shards=GROUPS)
    for group_id in world.group_ids:
        world.leader(group_id)
    world.machines["n3"].kill()
    for _ in range(rounds):
        for group_id in world.group_ids:
            write(world, group_id, VALUE)
    world.most_on_link = 0
    return world


@pytest.fixture
def world() -> Iterator[HostWorld]:
    """Groups that lack more than is let onto a link at once; every byte is accounted for."""
    world = behind(ROUNDS)
    yield world
    world.run(1)
    for machine in world.machines.values():
        for window in machine.host._windows.values() if machine.alive else ():
            assert window.free_bytes == PEER_WINDOW_BYTES, "nothing is in flight in the end"


def test_windows_of_all_groups_share_one(world: HostWorld) -> None:
    """What is on a link at once does not grow with the number of groups; all catch up."""
    world.machines["n3"].start()
    world.run_until(lambda: len(caught_up(world, "n3")) == GROUPS, within_s=5)
    leaders = {world.leader(group_id).name for group_id in world.group_ids}
    assert GROUPS * ROUNDS * len(VALUE) > 2 * len(leaders) * PEER_WINDOW_BYTES
    assert world.most_on_link < PEER_WINDOW_BYTES + 2**20 + GROUPS * SHARE_BYTES


def test_groups_go_on_by_turns(world: HostWorld) -> None:
    """Those that found the window full share what gets free: none is far before the others."""
    follower = world.machines["n3"]
    follower.start()
    follower.sync_jobs.stall()
    world.run(0.4)
    first = follower.group().last_index
    waited = [g for g in world.group_ids if follower.group(g).last_index < first]
    assert len(waited) > GROUPS / 2, "the window was full before it was their turn"

    def received() -> list[int]:
        indexes = [follower.group(group_id).last_index for group_id in waited]
        assert max(indexes) - min(indexes) <= 1
        return indexes

    follower.sync_jobs.seconds = 0.002
    follower.sync_jobs.go_on()
    world.run_until(lambda: min(received()) == first, within_s=5)
    world.run_until(lambda: len(caught_up(world, "n3")) == GROUPS, within_s=5)


def test_many_refusals_of_one_thing_have_it_sent_once(world: HostWorld) -> None:
    """A follower that stood still finds many heartbeats, and refuses each; they are of the past."""
    leader, follower = world.leader(), world.machines["n3"]
    follower.start()
    refusals = {
        group_id: AppendResponse(
            leader.group(group_id).term, follower.group(group_id).last_index + 1, success=False
        )
        for group_id in world.group_ids
    }
    for _ in range(10):
        for group_id, refusal in refusals.items():
            leader.group(group_id).receive("n3", refusal)
    world.run_until(lambda: len(caught_up(world, "n3")) == GROUPS, within_s=5)
    assert world.most_on_link < PEER_WINDOW_BYTES + 2**20 + GROUPS * SHARE_BYTES


def _without_entries(group: Group, message: AppendEntries) -> bool:
    del group
    return bool(message.entries)


def test_a_refusal_is_believed_again_after_a_while(world: HostWorld) -> None:
    """Where nothing came of what was sent since, as of a follower whose disk was full."""
    leader, follower = world.leader(), world.machines["n3"]
    follower.start()
    decline = follower.host._must_decline
    follower.host._must_decline = _without_entries  # type: ignore[method-assign]
    world.run(3)
    assert len(caught_up(world, "n3")) == 0
    assert leader.host._windows["n3"].free_bytes <= 0
    follower.host._must_decline = decline  # type: ignore[method-assign]
    world.run_until(lambda: len(caught_up(world, "n3")) == GROUPS, within_s=5)


def test_a_group_that_merely_goes_on_does_not_wait_for_those_that_catch_up() -> None:
    """A small entry goes at once, though the shared window is full."""
    world = behind(0)
    large, small = world.group_ids[:-1], world.group_ids[-1]
    for _ in range(ROUNDS):
        for group_id in large:
            write(world, group_id, VALUE)
    follower = world.machines["n3"]
    follower.start()
    follower.sync_jobs.stall()
    world.run(0.4)
    write(world, small, b"small")
    world.run(0.01)
    leader = world.leader(small).group(small)
    assert follower.group(small).last_index == leader.last_index
    follower.sync_jobs.go_on()
    world.run_until(lambda: len(caught_up(world, "n3")) == GROUPS, within_s=5)


def test_what_was_in_flight_is_given_back_with_its_link_and_its_leadership(
    world: HostWorld,
) -> None:
    """A peer that goes again, and a leader that stops leading, hold no place for ever."""
    for _ in range(3):
        world.machines["n3"].start()
        world.run(0.003)
        world.machines["n3"].kill()
    world.machines["n3"].start()
    world.run(0.003)
    leader = world.leader()
    outcomes: list[object] = []
    target = next(name for name in world.names if name not in {leader.name, "n3"})
    for group_id in world.group_ids:
        if leader.group(group_id).is_leader:
            leader.group(group_id).transfer.begin(target, outcomes.append)
    world.run_until(lambda: len(outcomes) == GROUPS)
    assert world.leader().name == target
    world.run_until(lambda: len(caught_up(world, "n3")) == GROUPS, within_s=10)


def test_turns_are_taken_in_the_order_of_asking() -> None:
    """Who asks again stands behind the others; nobody has a turn without room."""
    opened: list[str] = []
    taken: list[str] = []
    window = PeerWindow(lambda: opened.append("opened"), bytes_max=10)

    def turn(name: str, size: int, times: int) -> None:
        def go() -> None:
            nonlocal times
            taken.append(name)
            window.take(size)
            times -= 1
            if times:
                window.wait(go)

        window.wait(go)

    window.take(10)
    turn("a", 6, 3)
    turn("b", 6, 1)
    window.give_turns()
    assert not taken
    window.release(10)
    assert opened == ["opened"]
    window.give_turns()
    assert taken == ["a", "b"]
    window.release(12)
    window.give_turns()
    assert taken == ["a", "b", "a", "a"]
    window.release(12)
    assert window.is_open
    assert opened == ["opened"] * 2
