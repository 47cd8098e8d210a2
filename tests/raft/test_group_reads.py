"""A group's state is read through the group, which says when it may be."""

import scenarios
from group_world import GroupWorld, make_group_world

from raftkv.core.shard.machine import StateMachine
from raftkv.raft.proposals import GroupFailure


def led_by_a() -> GroupWorld:
    """``a`` leads, and everyone has the write ``base``."""
    return scenarios.led_by_a(make_group_world)


def keys(state: StateMachine | GroupFailure) -> int | str:
    """How many keys there are, or why that is not said."""
    return state.reason if isinstance(state, GroupFailure) else state.key_count


def test_a_query_sees_the_state_once_a_majority_has_confirmed_the_leader() -> None:
    """Not before."""
    world, seen = led_by_a(), []
    world.nodes["a"].group.read(lambda state: seen.append(keys(state)))
    assert seen == []
    world.run(0.2)
    assert seen == [1]


def test_a_query_is_told_why_it_may_not_look() -> None:
    """It is called all the same, once."""
    world, seen = led_by_a(), []
    world.nodes["b"].group.read(lambda state: seen.append(keys(state)))
    world.run(0.2)
    assert seen == ["not_leader"]


def test_a_stale_query_sees_what_this_replica_has_if_that_is_young_enough() -> None:
    """A follower asks its leader; cut off from it, the query is told so."""
    world, seen = led_by_a(), []
    follower = world.nodes["b"].group
    follower.read_stale(lambda state: seen.append(keys(state)), max_age_ms=50)
    world.run(0.2)
    assert seen == [1]
    world.network.isolate("b")
    world.run(1.0)
    follower.read_stale(lambda state: seen.append(keys(state)), max_age_ms=50)
    world.run(2.0)
    assert seen == [1, "not_leader"]


def test_a_local_query_asks_nobody() -> None:
    """It sees what this replica has, however old that is."""
    world = led_by_a()
    world.network.isolate("b")
    world.write("a", "news")
    assert world.nodes["a"].group.read_local(keys) == 2
    assert world.nodes["b"].group.read_local(keys) == 1
