"""ReadIndex and reads of bounded age: what is answered is never older than promised."""

import pytest
import scenarios
from group_world import TIMING, GroupWorld, make_group_world, message_of

from raftkv.raft import host
from raftkv.raft import messages as wire
from raftkv.raft.freshness import ASK_AGAIN_S
from raftkv.raft.proposals import GroupFailure
from raftkv.raft.reads import Voucher


class Asked:
    """The outcome of a read: how often it was answered, and how."""

    def __init__(self) -> None:
        self.outcomes: list[GroupFailure | None] = []

    def __call__(self, failure: GroupFailure | None) -> None:
        """Take the answer."""
        self.outcomes.append(failure)

    @property
    def served(self) -> bool:
        """Whether the state may be read."""
        return self.outcomes == [None]


def confirm(world: GroupWorld, name: str, voucher: Voucher | None = None) -> Asked:
    """Ask for a linearizable read."""
    asked = Asked()
    world.nodes[name].group.reads.confirm(asked, voucher)
    return asked


def fresh(world: GroupWorld, name: str, max_age_ms: int) -> Asked:
    """Ask for a read of bounded age."""
    asked = Asked()
    world.nodes[name].group.freshness.ensure(max_age_ms, asked)
    return asked


def test_a_leader_serves_reads_without_the_log() -> None:
    """A confirmed read adds nothing to the log."""
    world = scenarios.led_by_a(make_group_world)
    before = world.nodes["a"].group.last_index
    asked = confirm(world, "a")
    world.run(0.2)
    assert asked.served
    assert world.nodes["a"].group.last_index == before


def test_a_follower_refuses_reads() -> None:
    """Only a leader confirms reads; others say so at once."""
    world = scenarios.led_by_a(make_group_world)
    (outcome,) = confirm(world, "b").outcomes
    assert outcome is not None
    assert outcome.reason == "not_leader"


def test_one_replica_alone_serves_reads() -> None:
    """A group of one is its own majority."""
    world = scenarios.led_by_a(make_group_world, "a")
    asked = confirm(world, "a")
    world.run(0.1)
    assert asked.served


def test_a_cut_off_leader_answers_no_read_even_later() -> None:
    """A read of a cut-off leader is refused when it steps down, never served."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("a")
    asked = confirm(world, "a")
    world.elect("b")
    world.write("b", "news")
    world.network.connect_all()
    world.run(2.0)
    assert len(asked.outcomes) == 1
    assert not asked.served


def leader_with_an_open_round() -> tuple[GroupWorld, Asked, int]:
    """A leader whose confirm round has left and whose answers are held; and the round's number."""
    world = scenarios.led_by_a(make_group_world)
    for other in "bc":
        world.network.hold(other, "a")
    asked = confirm(world, "a")
    world.turn("a")
    sent = [message_of(event) for event in world.network.trace if event.link == ("a", "b")]
    (question,) = [message for message in sent if isinstance(message, wire.ConfirmLeader)]
    return world, asked, question.round


def test_answers_of_an_earlier_round_do_not_confirm_a_later_read() -> None:
    """A slow yes to the round before is void: it was said before the read came."""
    world, first, number = leader_with_an_open_round()
    group = world.nodes["a"].group
    group.receive("b", wire.LeaderConfirmed(group.term, number))
    world.turn("a")
    assert first.served
    second = confirm(world, "a")
    world.turn("a")
    group.receive("c", wire.LeaderConfirmed(group.term, number))
    world.turn("a")
    assert not second.outcomes
    for other in "bc":
        world.network.release(other, "a")
    world.run(0.2)
    assert second.served


def test_a_lost_round_is_asked_again() -> None:
    """A question that is lost with its link is asked again; the read does not hang."""
    world = scenarios.led_by_a(make_group_world)
    asked = confirm(world, "a")
    world.turn("a")
    for other in "bc":
        world.network.cut("a", other)
        world.network.connect("a", other)
    world.run(0.3)
    assert asked.served


def test_a_read_does_not_join_a_round_that_has_left() -> None:
    """The answer to a round serves whom it was asked for, not who came afterwards."""
    world, first, number = leader_with_an_open_round()
    second = confirm(world, "a")
    world.turn("a")
    group = world.nodes["a"].group
    group.receive("b", wire.LeaderConfirmed(group.term, number))
    world.turn("a")
    assert first.served
    assert not second.outcomes


def test_answers_of_another_term_do_not_confirm() -> None:
    """A yes of an older term says nothing about this one."""
    world, asked, number = leader_with_an_open_round()
    group = world.nodes["a"].group
    group.receive("b", wire.LeaderConfirmed(group.term - 1, number))
    group.receive("c", wire.LeaderConfirmed(group.term + 1, number))
    world.turn("a")
    assert not asked.outcomes


def test_strangers_do_not_confirm() -> None:
    """Only members count."""
    world, asked, number = leader_with_an_open_round()
    group = world.nodes["a"].group
    group.receive("x", wire.LeaderConfirmed(group.term, number))
    world.turn("a")
    assert not asked.outcomes


def test_a_read_that_a_member_forwards_needs_no_round() -> None:
    """Leader and forwarder are two of three: no newer leader was elected before the read came."""
    world = scenarios.led_by_a(make_group_world)
    term = world.nodes["b"].group.term
    world.network.isolate("a")
    world.network.trace.clear()
    assert confirm(world, "a", Voucher("b", term)).served
    assert not world.network.trace


@pytest.mark.parametrize(("member", "behind"), [("b", 1), ("b", -1), ("x", 0), ("a", 0)])
def test_the_word_of_a_stranger_or_of_another_term_confirms_nothing(
    member: str, behind: int
) -> None:
    """Nor does the leader's own: such reads wait for a round, which a cut-off leader never gets."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("a")
    asked = confirm(world, "a", Voucher(member, world.nodes["a"].group.term - behind))
    world.run(0.2)
    assert not asked.served


def test_a_vouched_read_waits_until_what_is_committed_is_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ReadIndex is about what is committed, however much of it there is to apply."""
    monkeypatch.setattr(host, "APPLY_OPERATIONS_PER_TICK", 1)
    world = scenarios.led_by_a(make_group_world)
    group = world.nodes["a"].group
    world.network.hold("b", "a")
    world.network.hold("c", "a")
    scenarios.propose_apart(world, "a", ["first", "second", "third"])
    world.network.release("b", "a")
    for _ in world.network.queued("b", "a"):
        world.network.deliver_link("b", "a")
    group.tick()
    assert group.commit_index > group.applied_index
    asked = confirm(world, "a", Voucher("b", group.term))
    assert not asked.outcomes
    world.network.release("c", "a")
    world.run(0.5)
    assert asked.served
    assert "third" in world.values("a")


def test_one_word_of_five_is_no_majority() -> None:
    """A larger group asks its members also when one of them forwards."""
    world = scenarios.led_by_a(make_group_world, "abcde")
    for other in "cde":
        world.network.isolate(other)
    asked = confirm(world, "a", Voucher("b", world.nodes["a"].group.term))
    world.run(0.2)
    assert not asked.served


def test_a_follower_refuses_a_read_that_is_vouched_for() -> None:
    """Who does not lead does not know what is committed."""
    world = scenarios.led_by_a(make_group_world)
    (outcome,) = confirm(world, "c", Voucher("b", world.nodes["c"].group.term)).outcomes
    assert outcome is not None
    assert outcome.reason == "not_leader"


def test_a_vouched_read_waits_for_the_no_op() -> None:
    """As any other: ``b`` leads, but does not know yet that ``news`` is committed."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("c")
    world.propose("a", "news")
    world.run(1.0, until=lambda: world.is_acknowledged("news"))
    world.network.isolate("a")
    world.network.connect("b", "c")
    world.elect("b")
    world.network.hold("c", "b")
    asked = confirm(world, "b", Voucher("c", world.nodes["b"].group.term))
    world.run(0.2)
    assert not asked.outcomes
    world.network.release("c", "b")
    world.run(0.5)
    assert asked.served
    assert "news" in world.values("b")


def test_a_new_leader_serves_no_read_before_its_no_op() -> None:
    """Until its own term's no-op is applied a leader may not know what is committed.

    ``b`` holds ``news``, which ``a`` has acknowledged, and does not know yet that it is committed.
    """
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("c")
    world.propose("a", "news")
    world.run(1.0, until=lambda: world.is_acknowledged("news"))
    world.network.isolate("a")
    assert "news" not in world.values("b")
    world.network.connect("b", "c")
    world.elect("b")
    world.network.hold("c", "b")
    world.network.trace.clear()
    asked = confirm(world, "b")
    world.run(0.2)
    group = world.nodes["b"].group
    for number in range(1, 10):  # members agree that it leads; that is not enough
        group.receive("c", wire.LeaderConfirmed(group.term, number))
    world.turn("b")
    assert not asked.outcomes
    world.network.release("c", "b")
    world.run(0.5)
    assert asked.served
    assert "news" in world.values("b")


def test_confirmations_name_term_and_round() -> None:
    """A member says yes only in its own term; to an older leader it names the newer term."""
    world = scenarios.led_by_a(make_group_world)
    group = world.nodes["b"].group
    world.network.trace.clear()
    group.receive("a", wire.ConfirmLeader(group.term, 7))
    group.receive("a", wire.ConfirmLeader(group.term - 1, 8))
    group.receive("a", wire.ConfirmLeader(group.term + 1, 9))
    said = [message_of(event) for event in world.network.trace if event.link == ("b", "a")]
    assert said == [wire.LeaderConfirmed(group.term, 7), wire.HigherTerm(group.term)]


def test_one_member_cannot_confirm_twice() -> None:
    """The same member's yes, repeated, is no majority."""
    world = scenarios.led_by_a(make_group_world, "abcde")
    for other in "bcde":
        world.network.hold(other, "a")
    asked = confirm(world, "a")
    world.run(0.02)
    group = world.nodes["a"].group
    for _ in range(3):
        group.receive("b", wire.LeaderConfirmed(group.term, group.reads._round))
    world.turn("a")
    assert not asked.outcomes
    group.receive("c", wire.LeaderConfirmed(group.term, group.reads._round))
    world.turn("a")
    assert asked.served


def test_a_follower_proves_its_age() -> None:
    """A follower that asks the leader serves a read of age zero, with everything up to then."""
    world = scenarios.led_by_a(make_group_world)
    world.write("a", "news")
    asked = fresh(world, "b", 0)
    assert not asked.outcomes
    world.run(0.2)
    assert asked.served
    assert "news" in world.values("b")
    age_ms = world.nodes["b"].group.freshness.age_ms()
    assert age_ms is not None
    assert 0 <= age_ms <= 200


def test_a_follower_of_a_deposed_leader_cannot_prove_anything() -> None:
    """Heartbeats of a deposed leader look fresh; without a quorum they prove no age."""
    world = scenarios.led_by_a(make_group_world, "abcde")
    world.network.partition("ab", "cde")
    world.elect("c")
    world.write("c", "news")
    asked = fresh(world, "b", 500)
    world.run(0.3)
    assert not asked.served


def test_an_echo_for_an_earlier_life_proves_nothing() -> None:
    """A machine that has rebooted does not take its old clock's stamp for one of its new clock."""
    world = scenarios.led_by_a(make_group_world)
    for other in "bc":
        world.network.hold(other, "a")
    fresh(world, "b", 0)
    world.network.deliver_link("b", "a", 100)  # a asks for a round; its answers are on their way
    world.turn("a")
    old_clock_s = world.nodes["b"].clock.monotonic()
    world.lose_power("b")
    world.start("b")
    world.nodes["b"].clock._offset_s = -world.clock.monotonic()  # it has just booted
    assert world.nodes["b"].clock.monotonic() < old_clock_s
    world.network.release("b", "a")
    world.network.release("c", "a")
    world.network.connect_all()
    world.run(0.5)
    world.network.isolate("b")
    world.write("a", "news")
    age_ms = world.nodes["b"].group.freshness.age_ms()
    assert age_ms is None or age_ms >= 0
    assert not fresh(world, "b", 0).served


def test_a_cut_off_leader_stops_leading_while_it_is_asked_to_write() -> None:
    """What it proposes stands for a heartbeat, and not for the answers of a majority (H15)."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("a")
    world.run(TIMING.election_max_s - 1.5 * TIMING.heartbeat_s)
    assert world.leads("a")
    for number in range(4):  # so often that no heartbeat is ever due
        world.propose("a", f"x{number}")
        world.run(0.6 * TIMING.heartbeat_s)
    assert not world.leads("a")


def test_a_read_that_comes_while_an_older_question_is_on_its_way_is_served() -> None:
    """The answer to that one is too old for it; the leader is asked again at once."""
    world = scenarios.led_by_a(make_group_world)
    first = fresh(world, "b", 0)
    world.clock.advance(0.005)
    later = [fresh(world, "b", age_ms) for age_ms in (0, 1, 4)]
    assert not any(asked.outcomes for asked in (first, *later))
    world.run(0.05)
    assert all(asked.served for asked in (first, *later))


def test_a_read_of_bounded_age_is_asked_of_the_new_leader() -> None:
    """A question that was on its way to the old one, which still is there, is asked anew."""
    world = scenarios.led_by_a(make_group_world)
    world.network.hold("b", "a")
    asked = fresh(world, "b", 0)
    world.run(0.02)
    world.nodes["a"].group.transfer.begin("c", lambda _: None)
    assert world.run(1.0, until=lambda: world.nodes["b"].group.leader == "c")
    world.run(2 * TIMING.heartbeat_s)  # one brings the commit index of the answer
    assert asked.served


def test_a_question_without_an_answer_is_asked_again() -> None:
    """For as long as somebody waits for it, though nothing else happens."""
    world = scenarios.led_by_a(make_group_world)
    leader = world.nodes["a"].group.freshness
    with pytest.MonkeyPatch.context() as deaf:
        deaf.setattr(leader, "on_query", lambda *_: None)
        asked = fresh(world, "b", 0)
        world.run(0.05)
    node = world.nodes["b"]
    assert node.group.next_deadline() <= node.clock.monotonic() + ASK_AGAIN_S
    world.run(2 * ASK_AGAIN_S)
    assert asked.served


def test_a_follower_that_is_cut_off_from_its_leader_says_so_at_once() -> None:
    """Whether the read waits already or comes after the link was lost."""
    world = scenarios.led_by_a(make_group_world)
    world.network.hold("b", "a")
    before = fresh(world, "b", 0)
    world.network.cut("a", "b")
    after = fresh(world, "b", 0)
    for asked in (before, after):
        (outcome,) = asked.outcomes
        assert outcome is not None
        assert outcome.reason == "not_leader"


def test_a_follower_grows_older_while_its_machine_is_suspended() -> None:
    """The monotonic clock stands still meanwhile, but the data does not stay fresh."""
    world = scenarios.led_by_a(make_group_world)
    fresh(world, "b", 0)
    world.run(0.1)
    node = world.nodes["b"]
    node.clock.suspended_s += 3600.0
    age_ms = node.group.freshness.age_ms()
    assert age_ms is not None
    assert age_ms >= 3_600_000
    assert not fresh(world, "b", 1_000_000).outcomes
