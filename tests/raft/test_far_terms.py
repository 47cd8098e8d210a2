"""A term is durable and spreads: nobody can use the terms up by saying a high one.

One message that was believed would end the group for good: no vote is possible above the last term.
"""

import msgspec
import pytest

from raftkv.raft import messages as wire
from raftkv.raft.errors import ReplicaError
from raftkv.raft.stock import TERM_STEP_MAX
from tests.raft import scenarios
from tests.raft.group_world import GROUP, GroupWorld, make_group_world

FAR = 2**52
"""A term that may be said, and that no cluster has come to."""


def claims(term: int, last_index: int) -> dict[str, wire.RaftMessage]:
    """One of each message that may tell of a newer term; ``term``: the present one."""
    return {
        "higher term": wire.HigherTerm(FAR),
        "append": wire.AppendEntries(FAR, last_index, term, last_index),
        "entries": wire.AppendEntries(FAR, last_index, term, last_index, ((b"\x01", FAR),)),
        "entry of a later term": wire.AppendEntries(term, last_index, term, 0, ((b"\x01", FAR),)),
        "append response": wire.AppendResponse(FAR, 1, success=True),
        "vote request": wire.RequestVote(FAR, last_index, term, transfer=True),
        "vote": wire.VoteResponse(FAR),
        "pre-vote": wire.PreVote(FAR, last_index, term, 1),
        "pre-vote response": wire.PreVoteResponse(FAR, 1, granted=True),
        "take over": wire.TimeoutNow(FAR),
        "confirm": wire.ConfirmLeader(FAR, 1),
        "confirmed": wire.LeaderConfirmed(FAR, 1),
        "snapshot": wire.SnapshotChunk(FAR, last_index + 9, FAR, 4, 0, b"what"),
        "snapshot of a later term": wire.SnapshotChunk(term, last_index + 9, FAR, 4, 0, b"what"),
        "snapshot progress": wire.SnapshotProgress(FAR, last_index, 0, in_order=True),
    }


def settled(world: GroupWorld) -> bool:
    """Whether one leader is known to everyone."""
    known = {world.nodes[name].group.leader for name in world.live}
    return len(known) == 1 and None not in known


TOLD = [(claim, to) for claim in claims(1, 1) for to in "ab"]
TOLD.remove(("entry of a later term", "a"))  # two leaders of one term: that replica stops


@pytest.mark.parametrize(("claim", "to"), TOLD)
def test_no_message_uses_the_terms_up(claim: str, to: str) -> None:
    """Leader and follower stay within a step of their term, elect, write, and start again."""
    world = scenarios.led_by_a(make_group_world)
    group = world.nodes[to].group
    before = group.term
    group.receive("c", claims(group.term, group.last_index)[claim])
    assert group.term <= before + TERM_STEP_MAX
    assert world.run(5.0, until=lambda: settled(world))
    for name in "abc":
        world.crash(name)
    for name in "abc":
        world.start(name)
    world.network.connect_all()
    assert world.run(5.0, until=lambda: settled(world))
    leader = world.nodes[next(iter(world.live))].group.leader
    assert leader is not None
    world.propose(leader, "after")
    assert world.run(5.0, until=lambda: world.is_acknowledged("after"))
    assert max(world.term(name) for name in "abc") < before + 2 * TERM_STEP_MAX
    assert not world.errors


def test_a_replica_that_missed_many_elections_comes_back() -> None:
    """A term further away than one step is learned from several messages, and then followed."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("c")
    for name in "ab":
        group = world.nodes[name].group
        aim = group.term + 5 * TERM_STEP_MAX
        while group.term < aim:
            group.receive("b" if name == "a" else "a", wire.HigherTerm(aim))
    assert world.run(5.0, until=lambda: {world.nodes[n].group.leader for n in "ab"} < {"a", "b"})
    world.network.connect_all()
    assert world.run(5.0, until=lambda: settled(world))
    leader = world.nodes["c"].group.leader
    assert leader is not None
    world.propose(leader, "x")
    assert world.run(5.0, until=lambda: world.values("c") == ["base", "x"])
    assert world.term("c") == world.term("a") >= 5 * TERM_STEP_MAX


@pytest.mark.parametrize(
    "message",
    [
        (8, 2**53 + 1),
        (1, 1, 2**53 + 1, 1, 1, []),
        (1, 1, 1, 1, 2**53 + 1, []),
        (13, 1, 2**53 + 1, 1, 4, 0, b"what"),
        (13, 1, 1, 1, -4, 0, b"what"),
        (14, 1, 1, -1, True),
        (15, 2**53 + 1, b"digest"),
    ],
)
def test_what_no_cluster_comes_to_is_no_message(message: tuple[object, ...]) -> None:
    """Terms, indexes and sizes beyond all that can be are not even decoded."""
    bad = msgspec.msgpack.encode((0, 1, message))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(bad, type=wire.Envelope)


def test_a_log_in_a_term_that_cannot_be_refuses_to_start() -> None:
    """Peers could not be told of that term: it says so, instead of asking for votes in vain."""
    world = scenarios.led_by_a(make_group_world)
    node = world.nodes["c"]
    node.wal.set_hard_state(GROUP, 2**62, None)
    node.sync()
    world.crash("c")
    with pytest.raises(ReplicaError, match="where no cluster comes"):
        world.start("c")
