"""A replica that must not lead: it follows and votes, and leads as soon as it may."""

import pytest

from tests.raft.group_world import GroupWorld, make_group_world


def withhold(world: GroupWorld, name: str, *, withheld: bool = True) -> None:
    """Tell a node that it must not lead, or that it may again."""
    world.nodes[name].group.withhold(withheld)
    world.turn(name)


def started_withheld(names: str) -> GroupWorld:
    """Return a world whose replicas are all told, before their first turn, not to lead."""
    world = GroupWorld(names)
    for name in names:
        world.start(name)
        world.nodes[name].group.withhold(withheld=True)
    world.network.connect_all()
    return world


@pytest.mark.parametrize("names", ["a", "abc"])
def test_nobody_leads_who_must_not(names: str) -> None:
    """Neither alone, where no vote is needed, nor with peers that would vote for it."""
    world = started_withheld(names)
    assert not world.run(10, until=lambda: any(map(world.leads, names)))
    assert [world.term(name) for name in names] == [0] * len(names)


@pytest.mark.parametrize("names", ["a", "abc"])
def test_a_replica_that_may_lead_again_does(names: str) -> None:
    """At once where it is alone, else after an election as at a start."""
    world = started_withheld(names)
    world.run(3)
    withhold(world, "a", withheld=False)
    assert world.run(0.5, until=lambda: world.leads("a"))
    assert world.term("a") == 1


def test_a_leader_that_must_not_lead_stops_at_once_and_others_take_over() -> None:
    """What it had not proposed is refused, definitely; it votes for its successor and follows."""
    world = make_group_world("abc")
    world.elect("a")
    world.write("a", "before")
    withhold(world, "a")
    assert not world.leads("a")
    assert world.run(5, until=lambda: world.leads("b") or world.leads("c"))
    leader = "b" if world.leads("b") else "c"
    world.write(leader, "after")
    assert world.run(1, until=lambda: world.values("a") == ["before", "after"])


def test_a_sole_replica_that_must_not_lead_acknowledges_nothing() -> None:
    """Not even what its disk is about to have."""
    world = make_group_world("a")
    assert world.run(2, until=lambda: world.leads("a"))
    world.propose("a", "under way")
    withhold(world, "a")
    world.propose("a", "later")
    world.run(5)
    assert not world.leads("a")
    assert not world.is_acknowledged("later")


def test_a_leadership_is_not_handed_to_one_that_must_not_lead() -> None:
    """It ignores the order to stand; the leader's transfer runs out of time and it goes on."""
    world = make_group_world("abc")
    world.elect("a")
    world.write("a", "before")
    withhold(world, "b")
    outcomes: list[object] = []
    world.nodes["a"].group.transfer.begin("b", outcomes.append)
    assert world.run(10, until=lambda: bool(outcomes))
    assert not world.leads("b")
    world.run(3)
    assert not world.leads("b")
