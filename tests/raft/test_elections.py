"""Elections: pre-vote, stickiness, votes, and how soon a group has a leader again."""

import pytest

from raftkv.raft import messages as wire
from tests.raft import scenarios
from tests.raft.group_world import TIMING, GroupWorld, make_group_world, message_of
from tests.raft.worlds import two_leaders


def leaders(world: GroupWorld) -> set[str]:
    """Who believes to lead now."""
    return {name for name in world.live if world.leads(name)}


def settled(world: GroupWorld) -> bool:
    """Whether one leader is known to everyone."""
    known = {world.nodes[name].group.leader for name in world.live}
    return len(known) == 1 and None not in known and leaders(world) == known


def test_an_isolated_replica_keeps_its_term() -> None:
    """Pre-vote: who cannot reach a majority asks in vain and disturbs nobody when it is back."""
    world = scenarios.led_by_a(make_group_world)
    term = world.term("a")
    world.network.isolate("c")
    world.run(20.0)
    assert world.term("c") == term
    world.network.connect_all()
    world.run(2.0)
    assert leaders(world) == {"a"}
    assert world.term("a") == term
    assert not world.errors


def test_a_replica_that_hears_no_leader_cannot_depose_it() -> None:
    """Stickiness: members who hear the leader refuse to elect somebody who does not."""
    world = scenarios.led_by_a(make_group_world)
    term = world.term("a")
    world.network.hold("a", "c")
    world.run(20.0)
    asked = [e for e in world.network.trace if isinstance(message_of(e), wire.PreVote)]
    assert asked  # c did try
    assert leaders(world) == {"a"}
    assert {world.term(name) for name in "abc"} == {term}


@pytest.mark.parametrize("to", ["a", "b"])
def test_a_vote_request_out_of_the_blue_changes_nothing(to: str) -> None:
    """Stickiness: a newer term in a vote request is ignored by the leader and by who hears it."""
    world = scenarios.led_by_a(make_group_world)
    group = world.nodes[to].group
    term = group.term
    group.receive("c", wire.RequestVote(term + 5, 10**6, term + 5))
    assert group.term == term
    world.run(1.0)
    assert leaders(world) == {"a"}


def test_a_pre_vote_changes_nothing_by_itself() -> None:
    """Asking and answering pre-votes neither moves a term nor casts a vote."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("a")
    world.clock.advance(2 * TIMING.election_max_s)
    group = world.nodes["b"].group
    term, last = group.term, group.last_index
    world.network.trace.clear()
    group.receive("c", wire.PreVote(term + 1, last, term, 1))
    (said,) = [message_of(e) for e in world.network.trace if e.link == ("b", "c")]
    assert said == wire.PreVoteResponse(term, 1, granted=True)
    assert group.term == term


@pytest.mark.parametrize(("back", "older"), [(1, 0), (0, 1), (-5, 1)])
def test_a_pre_vote_for_an_older_log_is_refused(back: int, older: int) -> None:
    """Who could not win is told so before it raises its term: by last term, then by length."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("a")
    world.clock.advance(2 * TIMING.election_max_s)
    group = world.nodes["b"].group
    world.network.trace.clear()
    group.receive("c", wire.PreVote(group.term + 1, group.last_index - back, group.term - older, 1))
    (said,) = [message_of(e) for e in world.network.trace if e.link == ("b", "c")]
    assert said == wire.PreVoteResponse(group.term, 1, granted=False)


def test_a_replica_with_an_older_log_is_not_elected() -> None:
    """Raft paper 5.4.1: the log decides, in pre-votes as in votes."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("c")
    world.write("a", "news")
    world.network.isolate("a")
    world.network.connect("b", "c")
    assert not world.campaign("c")
    assert world.run(5.0, until=lambda: world.leads("b"))
    world.run(0.5)
    assert "news" in world.values("b")


def test_a_log_without_the_newest_entries_gets_no_vote_by_force() -> None:
    """Even if its pre-vote is skipped, a candidate with an older log gets no vote."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("a")
    world.clock.advance(2 * TIMING.election_max_s)
    group = world.nodes["b"].group
    world.network.trace.clear()
    group.receive("c", wire.RequestVote(group.term + 1, group.last_index - 1, 1))
    world.nodes["b"].sync()
    assert not [e for e in world.network.trace if isinstance(message_of(e), wire.VoteResponse)]


def test_one_vote_per_term() -> None:
    """A second candidate of the same term gets nothing, also after a restart."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("a")
    world.clock.advance(2 * TIMING.election_max_s)
    group = world.nodes["b"].group
    request = wire.RequestVote(group.term + 1, group.last_index + 5, group.term)
    group.receive("c", request)
    world.nodes["b"].sync()
    world.lose_power("b")
    world.start("b")
    world.network.connect_all("abc")
    world.network.isolate("c")
    world.network.trace.clear()
    world.nodes["b"].group.receive("a", request)
    world.nodes["b"].sync()
    votes = [e for e in world.network.trace if isinstance(message_of(e), wire.VoteResponse)]
    assert not votes
    assert world.term("b") == request.term


def test_a_follower_in_a_newer_term_is_not_stuck() -> None:
    """A member that has seen a newer term tells its leader, and the group goes on together."""
    world = scenarios.led_by_a(make_group_world)
    group = world.nodes["c"].group
    group.receive("b", wire.HigherTerm(group.term + 7))
    assert group.term > world.term("a")
    assert world.run(5.0, until=lambda: settled(world))
    assert {world.term(name) for name in "abc"} == {group.term}
    (leader,) = leaders(world)
    world.write(leader, "goes-on")


def test_a_cut_off_leader_stops_leading() -> None:
    """A leader that hears from no majority steps down within some election time-outs."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("a")
    assert world.run(3 * TIMING.election_max_s, until=lambda: not world.leads("a"))


def test_a_leader_that_half_of_the_links_fail_stays() -> None:
    """A leader with a majority at hand keeps leading."""
    world = scenarios.led_by_a(make_group_world, "abcde")
    world.network.cut("a", "b")
    world.network.cut("a", "c")
    world.run(10.0)
    assert leaders(world) == {"a"}


@pytest.mark.parametrize("names", ["a", "ab", "abc", "abcde", "abcdefg"])
@pytest.mark.parametrize("seed", range(5))
def test_a_new_group_has_a_leader_soon(names: str, seed: int) -> None:
    """From nothing to one known leader takes at most three of the longest time-outs."""
    world = make_group_world(names, seed=seed)
    assert world.run(3 * TIMING.election_max_s, until=lambda: settled(world))
    assert two_leaders(world) == {}


def started(names: str, live: str, seed: int) -> GroupWorld:
    """A new group of which ``live`` run, some time before any link is up."""
    world = GroupWorld(names, seed=seed)
    for name in live:
        world.start(name)
    world.run(TIMING.election_max_s)
    assert not leaders(world)
    return world


@pytest.mark.parametrize("seed", range(10))
def test_the_preferred_replica_leads_once_it_reaches_a_majority(seed: int) -> None:
    """A start waits for links, for no time-out, and no leadership has to be moved after it."""
    world = started("abcde", "abcde", seed)
    world.network.connect("a", "b")
    assert not world.run(TIMING.heartbeat_s / 2, until=lambda: bool(leaders(world)))
    world.network.connect("a", "c")
    assert world.run(TIMING.heartbeat_s / 2, until=lambda: bool(leaders(world)))
    assert leaders(world) == {"a"}


@pytest.mark.parametrize("seed", range(10))
def test_a_start_does_not_wait_long_for_a_preferred_replica_that_is_down(seed: int) -> None:
    """The others ask a little later by themselves."""
    world = GroupWorld("abc", seed=seed)
    for name in "bc":
        world.start(name)
    world.network.connect("b", "c")
    assert world.run(3 * TIMING.heartbeat_s, until=lambda: bool(leaders(world)))


def test_a_candidate_is_told_with_the_term_that_it_stands_in() -> None:
    """What is said of an election has one term, that in which its winner leads."""
    world = scenarios.led_by_a(make_group_world)
    for name in "bc":
        world.nodes[name].events.clear()
    world.crash("a")
    assert world.run(3 * TIMING.election_max_s, until=lambda: bool(leaders(world)))
    (winner,) = leaders(world)
    told = [(e.kind, e.term) for e in world.nodes[winner].events]
    assert told == [("candidate", world.term(winner)), ("leader", world.term(winner))]


def test_a_replica_that_starts_beside_a_leader_disturbs_nobody() -> None:
    """It asks as soon as it reaches a majority, of whom each hears the leader and says no."""
    world = scenarios.led_by_a(make_group_world)
    term = world.term("a")
    world.crash("c")
    world.run(1.0)
    world.start("c")
    world.network.trace.clear()
    world.network.connect("b", "c")
    world.run(0.5)
    asked = [e for e in world.network.trace if isinstance(message_of(e), wire.PreVote)]
    assert {event.link.source for event in asked} == {"c"}
    world.network.connect("a", "c")
    world.run(0.5)
    assert settled(world)
    assert {world.term(name) for name in "abc"} == {term}


def fail_over_s(seed: int) -> float:
    """Simulated seconds from a leader's death to the next leader."""
    world = scenarios.led_by_a(make_group_world, seed=seed)
    world.crash("a")
    began_s = world.clock.monotonic()
    assert world.run(3 * TIMING.election_max_s, until=lambda: bool(leaders(world)))
    return world.clock.monotonic() - began_s


def test_a_dead_leader_is_replaced_at_once_when_links_break() -> None:
    """Broken links start an election before the time-out, and it is decided at once."""
    assert max(fail_over_s(seed) for seed in range(30)) < TIMING.election_min_s


def ask_together(world: GroupWorld, names: str) -> None:
    """Let each of ``names`` ask for pre-votes before it hears what the others ask."""
    for name in names:
        world.nodes[name].group._replica._stock.election_deadline = 0.0
    for name in names:
        world.turn(name)


@pytest.mark.parametrize("members", ["abc", "abcde", "abcdefg"])
def test_followers_that_ask_at_the_same_moment_do_not_split_the_vote(members: str) -> None:
    """Of those whose pre-votes cross one goes on, the others give way: no election is wasted."""
    world = scenarios.led_by_a(make_group_world, members)
    term = world.term("a")
    world.crash("a")
    ask_together(world, members[1:])
    assert world.run(TIMING.heartbeat_s, until=lambda: bool(leaders(world)))
    assert {world.term(name) for name in leaders(world)} == {term + 1}


def test_of_two_that_ask_at_the_same_moment_the_longer_log_goes_first() -> None:
    """Who lacks an entry gives way, whatever its name."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("b")
    world.write("a", "news")
    world.crash("a")
    world.network.connect("b", "c")
    ask_together(world, "bc")
    assert world.run(TIMING.heartbeat_s, until=lambda: bool(leaders(world)))
    assert leaders(world) == {"c"}


def asking_in_five() -> tuple[GroupWorld, int]:
    """``b`` of five asks for pre-votes, which reach nobody; and the number of its round."""
    world = scenarios.led_by_a(make_group_world, "abcde")
    world.crash("a")
    for other in "cde":
        world.network.hold("b", other)
    world.network.trace.clear()
    ask_together(world, "b")
    (question,) = asked_by(world, "b", "c")
    return world, question.round


def asked_by(world: GroupWorld, name: str, peer: str) -> list[wire.PreVote]:
    """What one member has asked another."""
    sent = [message_of(event) for event in world.network.trace if event.link == (name, peer)]
    return [message for message in sent if isinstance(message, wire.PreVote)]


def answer(world: GroupWorld, peer: str, number: int, *, granted: bool) -> None:
    """Let ``b`` have the answer of a peer, and its turn."""
    group = world.nodes["b"].group
    group.receive(peer, wire.PreVoteResponse(group.term, number, granted))
    world.turn("b")


def test_pre_votes_of_a_majority_elect() -> None:
    """What the next tests withhold."""
    world, number = asking_in_five()
    term = world.term("b")
    answer(world, "c", number, granted=True)
    assert world.term("b") == term
    answer(world, "d", number, granted=True)
    assert world.term("b") == term + 1


def test_a_refusal_takes_a_pre_vote_back() -> None:
    """A member that has heard a leader meanwhile says so when it is asked again."""
    world, number = asking_in_five()
    term = world.term("b")
    answer(world, "c", number, granted=True)
    answer(world, "c", number, granted=False)
    answer(world, "d", number, granted=True)
    assert world.term("b") == term


def test_pre_votes_of_long_ago_add_up_to_nothing() -> None:
    """After an election time-out the same question is a new one."""
    world, number = asking_in_five()
    term = world.term("b")
    answer(world, "c", number, granted=True)
    world.clock.advance(1.1 * TIMING.election_min_s)
    world.network.trace.clear()
    ask_together(world, "b")
    (again,) = asked_by(world, "b", "c")
    assert again.round != number
    answer(world, "d", again.round, granted=True)
    assert world.term("b") == term


def test_who_was_stopped_after_it_won_its_pre_votes_asks_anew() -> None:
    """Those who granted them may have a leader by now."""
    world, number = asking_in_five()
    group = world.nodes["b"].group
    for peer in "cd":
        group.receive(peer, wire.PreVoteResponse(group.term, number, granted=True))
    world.clock.advance(60.0)
    term = world.term("b")
    world.turn("b")
    assert world.term("b") == term


def test_a_question_lost_with_its_link_keeps_nobody_from_asking() -> None:
    """``c`` never heard ``b``'s, so theirs do not cross."""
    world, _ = asking_in_five()
    world.network.cut("b", "c")
    world.network.connect("b", "c")
    group = world.nodes["b"].group
    world.network.trace.clear()
    question = wire.PreVote(group.term + 1, group.last_index, group.journal.last_term, 1)
    group.receive("c", question)
    said = [message_of(event) for event in world.network.trace if event.link == ("b", "c")]
    assert wire.PreVoteResponse(group.term, 1, granted=True) in said


@pytest.mark.parametrize("seed", range(4))
def test_who_follows_again_asks_for_nothing_any_more(seed: int) -> None:
    """A question of a time when it was cut off does not make ``b`` go before ``c``."""
    world = scenarios.led_by_a(make_group_world, seed=seed)
    world.network.isolate("b")
    world.run(3.0)
    world.network.connect_all()
    world.run(3.0)
    assert leaders(world) == {"a"}
    world.network.isolate("a")
    world.clock.advance(2 * TIMING.election_max_s)
    group = world.nodes["b"].group
    world.network.trace.clear()
    question = wire.PreVote(group.term + 1, group.last_index, group.journal.last_term, 1)
    group.receive("c", question)
    said = [message_of(event) for event in world.network.trace if event.link == ("b", "c")]
    assert wire.PreVoteResponse(group.term, 1, granted=True) in said


def test_who_has_voted_waits_for_the_candidate() -> None:
    """Also if the link that completes a majority comes up only then."""
    world = started("abcde", "abcde", seed=1)
    group = world.nodes["a"].group
    world.network.connect("a", "b")
    group.receive("b", wire.RequestVote(1, group.last_index, group.journal.last_term))
    before = group.next_deadline()
    world.network.connect("a", "c")
    assert group.next_deadline() == before


def test_who_stepped_down_for_its_disk_does_not_ask_at_once() -> None:
    """Links that break and come back are not a start."""
    world = scenarios.led_by_a(make_group_world)
    node = world.nodes["a"]
    node.stalled_since = node.clock.monotonic() - 10
    world.turn("a")
    assert not leaders(world)
    world.network.isolate("a")
    before = node.group.next_deadline()
    world.network.connect("a", "b")
    assert node.group.next_deadline() == before


def test_who_asks_in_vain_keeps_nobody_from_leading() -> None:
    """Giving way is done once: one that can never win must not hold back who could.

    After ``a`` died only ``b`` and ``c`` have the newest entry, and ``b`` reaches nobody but ``c``:
    it asks again and again, and only ``c`` can have a majority.
    """
    world = scenarios.led_by_a(make_group_world, "abcde")
    for without in "de":
        world.network.isolate(without)
    world.write("a", "news")
    world.crash("a")
    for one, other in ("cd", "ce", "de"):
        world.network.connect(one, other)
    assert world.run(2 * TIMING.election_max_s, until=lambda: bool(leaders(world)))
    assert leaders(world) == {"c"}
    world.write("c", "later")
    assert world.values("c") == ["base", "news", "later"]


@pytest.mark.parametrize("asker", ["b", "c"])
def test_who_asks_and_dies_delays_the_others_by_a_few_heartbeats(asker: str) -> None:
    """A node that others gave way to, and that is gone, is not waited for longer."""
    world = scenarios.led_by_a(make_group_world, "abcde")
    world.crash("a")
    ask_together(world, "bc")
    world.deliver()
    world.crash(asker)
    assert world.run(TIMING.election_min_s, until=lambda: bool(leaders(world)))


@pytest.mark.parametrize("seed", range(5))
def test_a_silent_leader_is_replaced_within_time_outs(seed: int) -> None:
    """A leader whose machine froze is replaced although no link broke."""
    world = scenarios.led_by_a(make_group_world, seed=seed)
    for other in "bc":
        world.network.half_open(other, "a")
    world.live.discard("a")  # frozen
    assert world.run(3 * TIMING.election_max_s, until=lambda: bool(leaders(world)))


def test_a_frozen_leader_follows_when_it_wakes() -> None:
    """A leader that was frozen while another was elected serves nothing stale and follows."""
    world = scenarios.led_by_a(make_group_world)
    world.live.discard("a")  # SIGSTOP
    for other in "bc":
        world.network.half_open(other, "a")
    assert world.run(5.0, until=lambda: bool(leaders(world)))
    (leader,) = leaders(world)
    world.write(leader, "news")
    world.live.add("a")  # SIGCONT: it still believes that it leads
    assert world.leads("a")
    read = world.read("a")
    world.propose("a", "late")
    world.turn("a")
    world.network.connect_all()
    world.run(3.0)
    assert read.values is None or "news" in read.values
    assert world.answers["late"] in (["no"], ["unknown"])
    assert settled(world)
    assert "late" not in world.values(leader) or world.answers["late"] == ["unknown"]


def test_a_group_of_one_needs_nobody() -> None:
    """A single replica elects itself, commits alone, and does so again after a restart."""
    world = make_group_world("a")
    world.run(0.5)
    world.write("a", "first")
    world.lose_power("a")
    world.start("a")
    world.run(0.5)
    assert world.leads("a")
    world.write("a", "second")
    assert world.values("a") == ["first", "second"]


def test_a_group_of_one_leads_and_commits_only_what_its_disk_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Alone it is a majority of one, and still its disk comes first (H8, H9)."""
    world = make_group_world("a")
    node = world.nodes["a"]
    group, sync = node.group, node.sync
    sync()
    monkeypatch.setattr(node, "sync", lambda: None)
    world.run(TIMING.election_min_s)
    assert (group.term, group.is_leader) == (1, False), "it stands, in a term that may be lost"
    sync()
    world.run(TIMING.heartbeat_s)
    assert group.is_leader
    world.run(TIMING.election_min_s)
    durable = group.journal.durable_index
    assert group.last_index > durable, "its no-op waits for the disk"
    assert (group.commit_index, group.applied_index) == (durable, durable)
    sync()
    world.run(TIMING.heartbeat_s)
    assert group.commit_index == group.applied_index == group.last_index > durable


def test_a_group_of_one_does_not_stand_again_and_again_for_a_slow_disk() -> None:
    """What it waits for is its disk, so another term helps nobody."""
    world = make_group_world("a")
    world.nodes["a"].sync()
    world.stall_disk("a")
    world.run(10 * TIMING.election_max_s)
    assert world.term("a") == 1
