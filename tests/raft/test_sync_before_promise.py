"""Nothing that promises something leaves a node before its disk has it (H8).

The witness looks at the simulated disk itself, at what would be left of it if the power failed at
the very moment a message leaves or a writer is answered, and recovers the log from that.
"""

from collections.abc import Sequence

import pytest

from raftkv.core.cluster_map import GroupId
from raftkv.core.operations import WriteResult
from raftkv.raft import messages as wire
from raftkv.storage.snapshots import SnapshotStore
from raftkv.storage.wal import RecoveredGroup, Wal
from tests.raft import scenarios
from tests.raft.group_world import GROUP, WAL, GroupNode, GroupWorld, make_group_world, message_of
from tests.raft.random_run import RandomRun


class Durable:
    """What a node would find on its disk after a power loss right now."""

    def __init__(self, node: GroupNode) -> None:
        disk = node.disk.crash_choosing(lambda _: 0, lambda _: 0)
        node.disk._crashed = False  # it was only a look
        wal, recovered = Wal.open(disk, WAL, identity=f"identity-of-{node.name}")
        wal.close()
        self.group = recovered.get(GROUP) or RecoveredGroup(0, None, (1, 0), [])
        snapshot = SnapshotStore(disk, WAL.parent / "snapshots").header(GROUP)
        self.snapshot_index = snapshot.index if snapshot is not None else 1

    @property
    def last_index(self) -> int:
        """Up to where the log and the snapshot reach."""
        entries = self.group.entries
        return max(entries[-1][1] if entries else self.group.compacted[0], self.snapshot_index)

    def holds(self, index: int, term: int | None) -> bool:
        """Whether the entry (``index``, ``term``) is there, or a snapshot that covers it."""
        if index <= max(self.snapshot_index, self.group.compacted[0]):
            return True
        return (index, term) in [(entry[1], entry[2]) for entry in self.group.entries]


class Witness:
    """Checks every promise that leaves any node."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checked = {"acknowledgement": 0, "vote": 0, "candidacy": 0}
        send = GroupNode.send

        def watched(node: GroupNode, group: GroupId, peer: str, message: wire.RaftMessage) -> None:
            self._check(node, peer, message)
            send(node, group, peer, message)

        monkeypatch.setattr(GroupNode, "send", watched)

    def _check(self, node: GroupNode, peer: str, message: wire.RaftMessage) -> None:
        if isinstance(message, wire.AppendResponse) and message.success:
            self.checked["acknowledgement"] += 1
            index = message.next_index - 1
            assert Durable(node).holds(index, node.group.journal.term_at(index))
        elif isinstance(message, wire.VoteResponse):
            self.checked["vote"] += 1
            durable = Durable(node).group
            assert (durable.term, durable.vote) == (message.term, peer)
        elif isinstance(message, wire.RequestVote):
            self.checked["candidacy"] += 1
            durable = Durable(node).group
            assert (durable.term, durable.vote) == (message.term, node.name)


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    """Watch all nodes of this test."""
    return Witness(monkeypatch)


def test_no_promise_leaves_before_its_sync(witness: Witness) -> None:
    """Acknowledgements, votes and candidacies leave only when the disk has what they say."""
    world = scenarios.led_by_a(make_group_world)
    world.propose("a", *scenarios.names("x", 20))
    world.run(0.5)
    world.elect("b")
    world.write("b", "more")
    assert min(witness.checked.values()) > 0


def test_entries_that_replace_durable_ones_are_not_durable_yet(witness: Witness) -> None:
    """A log that was durable to an index is not so any more once a leader has replaced it."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("a")
    scenarios.propose_apart(world, "a", scenarios.names("divergent", 4))
    world.elect("b")
    scenarios.propose_apart(world, "b", ["real"])
    world.network.connect_all()
    before = witness.checked["acknowledgement"]
    world.run(1.0)
    assert witness.checked["acknowledgement"] > before
    assert world.values("a") == world.values("b")


@pytest.mark.parametrize("seed", range(4))
def test_no_promise_leaves_early_in_a_random_run(witness: Witness, seed: int) -> None:
    """The same, with syncs that begin and end at any time, crashes and snapshots."""
    RandomRun(100 + seed, "abc").run(800)
    assert witness.checked["acknowledgement"] > 10


def test_a_writer_is_answered_when_a_majority_has_it_on_disk() -> None:
    """At the moment of the answer, the disks of a majority hold the write."""
    world = scenarios.led_by_a(make_group_world)
    answered = 0

    def durable_copies() -> int:
        last = world.nodes["a"].group.last_index
        return sum(Durable(node).last_index >= last for node in world.nodes.values())

    def done(_: object) -> None:
        nonlocal answered
        answered += 1
        assert durable_copies() >= 2

    for number in range(10):
        world.submit("a", f"x{number}", done, 0)
        world.run(0.05)
    world.run(0.5)
    assert answered == 10


def test_a_leader_sends_before_its_own_sync() -> None:
    """The leader's disk works beside the followers', not before them."""
    world = scenarios.led_by_a(make_group_world)
    node = world.nodes["a"]
    world.propose("a", "x")
    world.network.trace.clear()
    node.group.tick()
    sent = [message_of(event) for event in world.network.trace if event.what == "send"]
    assert [m for m in sent if isinstance(m, wire.AppendEntries) and m.entries]
    assert node.wal.durable_lsn < node.wal.lsn


def write_without_the_disk_of(world: GroupWorld, slow: str) -> list[Sequence[WriteResult]]:
    """Write through ``a`` while one disk owes its sync; the results that came all the same."""
    results: list[Sequence[WriteResult]] = []
    world.nodes[slow].sync = lambda: None  # type: ignore[method-assign] # a slow disk
    world.submit("a", "x", lambda answer: results.append([]) if answer == "ok" else None, 0)
    world.run(0.2)
    return results


def test_a_leaders_own_disk_may_be_the_slow_one() -> None:
    """Two followers' disks are a majority; the leader's own need not have answered."""
    world = scenarios.led_by_a(make_group_world)
    assert len(write_without_the_disk_of(world, "a")) == 1
    assert Durable(world.nodes["a"]).last_index < world.nodes["a"].group.last_index


def test_a_leader_does_not_count_itself_before_its_disk() -> None:
    """With one follower cut off, a write waits for the leader's own disk."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("c")
    assert write_without_the_disk_of(world, "a") == []
    del world.nodes["a"].sync
    world.run(0.2)
    assert "x" in world.values("a")


def test_a_group_of_one_waits_for_its_disk() -> None:
    """Alone, nothing is committed before the sync, whoever ticks."""
    world = scenarios.led_by_a(make_group_world, "a")
    assert write_without_the_disk_of(world, "a") == []
    assert "x" not in world.values("a")
    del world.nodes["a"].sync
    world.run(0.1)
    assert "x" in world.values("a")


def test_an_acknowledgement_that_waited_into_another_term_is_dropped() -> None:
    """What a disk finishes after a newer leader was met proves nothing to the older one (H2)."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("c")
    node = world.nodes["b"]
    sync = node.sync
    node.sync = lambda: None  # type: ignore[method-assign] # a slow disk
    world.propose("a", "x")
    world.run(0.1)
    assert node.group.last_index == world.nodes["a"].group.last_index
    node.group.receive("c", wire.HigherTerm(node.group.term + 1))
    world.network.trace.clear()
    sync()
    assert not [
        event
        for event in world.network.trace
        if event.link == ("b", "a") and isinstance(message_of(event), wire.AppendResponse)
    ]


def test_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    """Raft paper 5.4.2 and figure 8: only an entry of the leader's own term commits what is before.

    ``x`` is on ``b`` and ``c``, a majority, but a third member may still replace it.
    """
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("c")
    world.network.hold("b", "a")
    world.propose("a", "x")
    world.run(0.1)
    world.network.isolate("a")
    world.network.connect("b", "c")
    world.network.hold("b", "c")
    group = world.nodes["b"].group
    older = group.last_index
    group._replica._campaign._pre_vote_won = True  # as if c had agreed
    world.expire("b")
    world.turn("b")
    group.receive("c", wire.VoteResponse(group.term))
    world.turn("b")
    assert group.is_leader
    assert group.last_index == older + 1
    group.receive("c", wire.AppendResponse(group.term, older + 1, success=True))
    world.turn("b")
    assert group.commit_index < older
    group.receive("c", wire.AppendResponse(group.term, older + 2, success=True))
    world.turn("b")
    assert group.commit_index == older + 1
