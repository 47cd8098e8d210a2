"""Handing the leadership over on purpose: soon, to the right replica, without failing a write."""

from functools import partial

import pytest
import scenarios
from group_world import TIMING, GroupWorld, make_group_world, message_of

from raftkv.raft import messages as wire
from raftkv.raft.proposals import GroupFailure


def transfer(world: GroupWorld, name: str, target: str) -> list[GroupFailure | None]:
    """Ask ``name`` to hand over to ``target``; what it says is appended to the list."""
    said: list[GroupFailure | None] = []
    world.nodes[name].group.transfer.begin(target, said.append)
    return said


def test_the_target_leads_soon() -> None:
    """An idle group changes hands in one term and less than an election time-out."""
    world = scenarios.led_by_a(make_group_world)
    term = world.term("a")
    said = transfer(world, "a", "c")
    assert world.run(TIMING.election_min_s, until=lambda: world.leads("c"))
    world.run(0.2)
    assert said == [None]
    assert world.term("c") == term + 1
    assert not world.leads("a")


def test_writes_wait_and_do_not_fail() -> None:
    """Writes before and during a transfer are answered, most of them with success."""
    world = scenarios.led_by_a(make_group_world)
    world.propose("a", *scenarios.names("before", 50))
    world.turn("a")
    transfer(world, "a", "b")
    world.propose("a", *scenarios.names("during", 5))
    world.turn("a")
    assert world.run(1.0, until=lambda: world.leads("b"))
    world.run(1.0)
    assert world.acknowledged >= set(scenarios.names("before", 50))
    # What waited was never proposed: refused definitely, for the router to send on.
    assert all(world.answers[name] in (["ok"], ["no"]) for name in scenarios.names("during", 5))
    assert set(world.values("b")) == world.acknowledged


def test_a_transfer_under_load_succeeds() -> None:
    """Writes are paused until the target has everything, so a busy leader can hand over too."""
    world = scenarios.led_by_a(make_group_world)
    said: list[GroupFailure | None] = []
    for number in range(200):
        leader = next((name for name in "abc" if world.leads(name)), None)
        if leader is not None:
            world.propose(leader, f"load{number}")
        if number == 100:
            said = transfer(world, "a", "b")
        world.run(0.01)
    world.run(0.5)
    assert said == [None]
    assert world.leads("b")
    refused = [name for name, outcomes in world.answers.items() if outcomes != ["ok"]]
    assert all(world.answers[name] == ["no"] for name in refused)
    assert len(refused) < 20


@pytest.mark.parametrize(
    ("name", "target", "why"),
    [
        ("a", "a", "leads already"),
        ("a", "x", "holds no replica"),
        ("b", "c", "does not lead"),
    ],
)
def test_impossible_transfers_are_refused_with_the_reason(name: str, target: str, why: str) -> None:
    """Nonsense is refused at once, in words."""
    world = scenarios.led_by_a(make_group_world)
    (failure,) = transfer(world, name, target)
    assert failure is not None
    assert why in failure.detail


def test_a_replica_that_lags_is_refused() -> None:
    """Leadership goes to nobody who would have to catch up first."""
    world = scenarios.led_by_a(make_group_world)
    world.network.hold("a", "c")
    for number in range(10):
        world.write("a", f"x{number}")
    (failure,) = transfer(world, "a", "c")
    assert failure is not None
    assert "lags" in failure.detail


def test_a_target_that_is_gone_costs_a_pause_only() -> None:
    """If the target does not take over in time, the leader goes on with what waited."""
    world = scenarios.led_by_a(make_group_world)
    term = world.term("a")
    world.network.hold("a", "c")
    said = transfer(world, "a", "c")
    world.propose("a", "waiting")
    assert world.run(2 * TIMING.election_max_s, until=lambda: bool(said))
    world.run(0.5)
    assert said[0] is not None
    assert said[0].reason == "refused"
    assert world.acknowledged >= {"waiting"}
    assert world.leads("a")
    assert world.term("a") == term


def test_a_target_does_not_wait_for_the_leader_it_replaces() -> None:
    """What that still sends does not put the election off."""
    world = scenarios.led_by_a(make_group_world)
    group = world.nodes["b"].group
    group.receive("a", wire.TimeoutNow(group.term))
    due = group.next_deadline()
    group.receive("a", wire.AppendEntries(group.term, group.last_index, group.journal.last_term, 0))
    assert group.next_deadline() == due


def test_a_leader_hands_over_only_what_its_own_disk_has() -> None:
    """Until it has synced, as it may be the target that fails next."""
    world = scenarios.led_by_a(make_group_world)
    node = world.nodes["a"]
    sync = node.sync
    node.sync = lambda: None  # type: ignore[method-assign] # a slow disk
    world.propose("a", "x")
    world.turn("a")
    world.deliver()
    for name in "bc":
        world.turn(name)
    world.deliver()
    assert node.group.match_index("b") == node.group.last_index
    transfer(world, "a", "b")
    world.network.trace.clear()
    world.turn("a")
    assert not asked_to_stand(world)
    sync()
    world.turn("a")
    assert asked_to_stand(world)


def asked_to_stand(world: GroupWorld) -> bool:
    """Whether ``a`` has told ``b`` to."""
    said = [message_of(event) for event in world.network.trace if event.link == ("a", "b")]
    return any(isinstance(message, wire.TimeoutNow) for message in said)


def test_only_one_transfer_at_a_time() -> None:
    """A second request during a transfer is refused."""
    world = scenarios.led_by_a(make_group_world)
    world.network.hold("a", "b")
    world.network.hold("a", "c")
    transfer(world, "a", "b")
    (failure,) = transfer(world, "a", "c")
    assert failure is not None
    assert "under way" in failure.detail


def test_leadership_goes_round() -> None:
    """Every replica can be made the leader in turn, again and again."""
    world = scenarios.led_by_a(make_group_world)
    leader = "a"
    for target in "bcabcacb":
        said = transfer(world, leader, target)
        assert world.run(1.0, until=partial(world.leads, target))
        world.write(target, f"x{len(world.answers)}")
        assert said == [None]
        leader = target
    world.run(0.5)
    assert world.acknowledged == set(world.values("a"))


def asked_to_take_over(world: GroupWorld, name: str, by: str) -> None:
    """Give ``name`` the request of its leader, and no turn yet."""
    group = world.nodes[name].group
    group.receive(by, wire.TimeoutNow(group.term))


def test_a_request_to_take_over_is_lost_with_the_link_of_who_asked() -> None:
    """Who is cut off before its next turn deposes nobody when it is linked again."""
    world = scenarios.led_by_a(make_group_world)
    asked_to_take_over(world, "c", by="a")
    world.network.isolate("c")
    world.run(10.0)
    term = world.term("a")
    world.network.connect("a", "c")
    world.network.connect("b", "c")
    world.run(2.0)
    assert world.leads("a")
    assert [world.term(name) for name in "abc"] == [term] * 3


def test_a_request_to_take_over_is_of_one_moment() -> None:
    """A node that was frozen since it was asked does not act on it when it wakes."""
    world = scenarios.led_by_a(make_group_world)
    term = world.term("a")
    asked_to_take_over(world, "c", by="a")
    world.live.discard("c")
    world.run(2 * TIMING.election_max_s)
    world.live.add("c")
    world.run(2.0)
    assert world.leads("a")
    assert [world.term(name) for name in "abc"] == [term] * 3


def test_a_request_to_take_over_is_of_one_term() -> None:
    """Who hears of a newer term before its turn stands like anybody else, if at all."""
    world = scenarios.led_by_a(make_group_world)
    group = world.nodes["c"].group
    asked_to_take_over(world, "c", by="a")
    group.receive("b", wire.HigherTerm(group.term + 1))
    world.network.trace.clear()
    world.turn("c")
    said = [message_of(event) for event in world.network.trace if event.link[0] == "c"]
    assert not [message for message in said if isinstance(message, wire.RequestVote)]


def test_a_request_to_take_over_of_another_term_is_not_heard() -> None:
    """What a leader said in its last term is not meant for this one."""
    world = scenarios.led_by_a(make_group_world)
    group, term = world.nodes["c"].group, world.term("a")
    for other in (term - 1, term + 1):
        due = group.next_deadline()
        group.receive("a", wire.TimeoutNow(other))
        assert group.next_deadline() == due


def test_who_must_not_lead_any_more_forgets_that_it_was_asked_to() -> None:
    """A request does not wait until the node may lead again."""
    world = scenarios.led_by_a(make_group_world)
    term = world.term("a")
    asked_to_take_over(world, "c", by="a")
    group = world.nodes["c"].group
    group.withhold(withheld=True)
    world.run(0.1)
    group.withhold(withheld=False)
    world.run(2.0)
    assert world.leads("a")
    assert world.term("c") == term


def test_a_transfer_ends_with_the_link_to_its_target() -> None:
    """Writes wait no longer for a target that cannot hear, or hears no more."""
    world = scenarios.led_by_a(make_group_world)
    world.network.hold("a", "c")
    said = transfer(world, "a", "c")
    world.propose("a", "waiting")
    world.turn("a")
    world.network.cut("a", "c")
    assert world.run(TIMING.election_min_s / 2, until=lambda: "waiting" in world.acknowledged)
    assert [failure is not None and failure.reason for failure in said] == ["refused"]


def test_a_target_that_is_not_linked_is_refused_at_once() -> None:
    """No write waits for who cannot even be asked."""
    world = scenarios.led_by_a(make_group_world)
    world.network.cut("a", "c")
    (failure,) = transfer(world, "a", "c")
    assert failure is not None
    assert "no link to c" in failure.detail
