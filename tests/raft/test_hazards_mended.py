"""The stories of ``test_hazards_stock.py``, told to raftkv: no harm is done.

Each test also asserts that its story took place (the snapshot was sent, the disk was full, ...):
a story that could not happen proves nothing.
"""

from collections.abc import Iterator

import msgspec
import pytest
from pysyncobj.config import SyncObjConf

from raftkv.core.errors import CorruptSnapshot, UnknownFormat
from raftkv.raft import messages as wire
from raftkv.raft.errors import ReplicaError
from raftkv.raft.group import Group
from raftkv.raft.replication import MESSAGE_BYTES_MAX
from raftkv.sim.disk import SimulatedCrash
from raftkv.storage.disk import DiskFull, NoSuchFile
from raftkv.storage.snapshots import SnapshotDamaged
from tests.raft import scenarios
from tests.raft.group_world import SNAPSHOTS, GroupWorld, make_group_world, message_of
from tests.raft.worlds import applied_twice, belied, two_leaders, unanswered


class Maker:
    """Makes worlds and keeps them, to be looked at when the story is over."""

    def __init__(self) -> None:
        self.worlds: list[GroupWorld] = []

    def __call__(self, names: str, **options: object) -> GroupWorld:
        """Make a started world."""
        world = make_group_world(names, **options)
        self.worlds.append(world)
        return world

    @property
    def last(self) -> GroupWorld:
        """The world of the story told last."""
        return self.worlds[-1]

    def errors(self) -> set[type[BaseException]]:
        """Everything that was raised in any of the worlds."""
        return {type(error) for world in self.worlds for error in world.errors}


@pytest.fixture
def make() -> Iterator[Maker]:
    """A maker of raftkv's worlds; whatever the story, some things must never be."""
    maker = Maker()
    yield maker
    for world in maker.worlds:
        assert two_leaders(world) == {}
        assert applied_twice(world) == set()
        assert belied(world) == set()
        assert not [e for node in world.nodes.values() for e in node.events if "digest" in e.kind]


def installed(world: GroupWorld, name: str) -> int:
    """How many snapshots the replica has installed in this life."""
    return sum(event.kind == "snapshot_installed" for event in world.nodes[name].events)


def test_h1_snapshot_commits_nothing_but_itself(make: Maker) -> None:
    """H1: a deposed leader caught up by snapshot answers its writers truthfully."""
    assert scenarios.h1_snapshot_chunk_commits_divergent_entries(make) == set()
    assert installed(make.last, "a") == 1
    assert make.last.values("a") == make.last.values("b")
    assert make.last.acknowledged.isdisjoint(scenarios.names("divergent", 10))


def test_h2_resends_truncate_nothing(make: Maker) -> None:
    """H2: whatever part of a resend arrives, acknowledged entries stay."""
    assert scenarios.h2_resends_truncate_acknowledged_entries(make) == set()
    assert all("late10" in world.acknowledged for world in make.worlds)
    assert len(make.worlds) > 2


def test_h2_overlapping_append_truncates_nothing(make: Maker) -> None:
    """H2: an old, shorter append leaves the newer entries after it alone."""
    world = scenarios.led_by_a(make)
    world.write("a", *scenarios.names("early", 3))
    world.run(0.2)
    first = next(
        event.payload
        for event in world.network.trace
        if event.link == ("a", "b")
        and isinstance(message := message_of(event), wire.AppendEntries)
        and message.entries
    )
    before = world.nodes["b"].group.last_index
    world.network.send("a", "b", first)
    world.deliver()
    assert world.nodes["b"].group.last_index == before
    assert world.values("b") == world.values("a")


def test_h2_an_append_proves_nothing_beyond_itself(make: Maker) -> None:
    """H1, H2: a matching append commits and acknowledges no divergent entry that lies behind it."""
    world = scenarios.led_by_a(make)
    group = world.nodes["a"].group
    world.network.isolate("a")
    index = group.last_index
    for name in scenarios.names("divergent", 3):
        world.propose("a", name)
        world.turn("a")
    assert group.last_index > index
    world.network.connect("a", "b")
    world.network.trace.clear()
    prev_term = group.journal.term_at(index)
    assert prev_term is not None
    heartbeat = wire.AppendEntries(group.term + 1, index, prev_term, index + 20)
    group.receive("b", heartbeat)
    world.turn("a")
    assert group.commit_index == index
    assert world.acknowledged == {"base"}
    answers = [message_of(event) for event in world.network.trace if event.link == ("a", "b")]
    assert wire.AppendResponse(group.term, index + 1, success=True) in answers
    assert not [
        m for m in answers if isinstance(m, wire.AppendResponse) and m.next_index > index + 1
    ]


def test_h3_crash_between_snapshot_and_truncation(make: Maker) -> None:
    """H3: a snapshot newer than the log's head costs none of the entries after it."""
    assert scenarios.h3_crash_between_dump_and_truncation(make) == set()
    assert "late10" in make.last.acknowledged


@pytest.mark.parametrize("power", [True, False], ids=["power-loss", "kill"])
def test_h4_crash_at_every_step_of_a_compaction(make: Maker, *, power: bool) -> None:
    """H4: wherever writing a snapshot and trimming the log is cut off, every entry is there."""
    survived = 0
    for step in range(1, 1000):
        world = make("a", seed=step)
        world.elect("a")
        world.write("a", *scenarios.names("early", 40))
        disk = world.disks["a"]
        disk.crash_at = disk.operations + step
        try:
            node = world.nodes["a"]
            node.group.compaction.snapshot_written(node.write_snapshot())
            world.propose("a", "after")
            node.turn()
            finished = True
        except SimulatedCrash:
            finished = False
        disk.crash_at = None
        if power:
            world.lose_some("a", world.random)
        else:
            world.crash("a")
        world.start("a")
        world.run(2.0)
        assert set(world.values("a")) >= world.acknowledged
        survived += 1
        if finished:
            break
    assert survived > 10


def test_h5_damaged_snapshot_stops_the_start(make: Maker) -> None:
    """H5: a replica does not start on a snapshot that it cannot read."""
    assert scenarios.h5_damaged_snapshot_is_ignored(make) == set()
    assert make.last.live == set()
    assert make.errors() == {SnapshotDamaged}


def test_h5_every_flipped_bit_is_noticed(make: Maker) -> None:
    """H5: no single bit of a snapshot can change without being noticed."""
    world = scenarios.led_by_a(make, "a")
    world.write("a", *scenarios.names("early", 3))
    world.compact("a")
    world.crash("a")
    disk = world.disks["a"]
    (path,) = [SNAPSHOTS / name for name in disk.listdir(SNAPSHOTS)]
    for bit in range(disk.open(path).size() * 8):
        disk.flip_bit(path, bit)
        with pytest.raises((SnapshotDamaged, CorruptSnapshot, UnknownFormat)):
            world.start("a")
        disk.flip_bit(path, bit)
    world.start("a")
    assert "early3" in world.values("a")


def test_h5_missing_snapshot_stops_the_start(make: Maker) -> None:
    """H5: a compacted log without its snapshot is not taken for an empty state."""
    world = scenarios.led_by_a(make, "a")
    world.write("a", "early")
    world.compact("a")
    world.crash("a")
    disk = world.disks["a"]
    (path,) = [SNAPSHOTS / name for name in disk.listdir(SNAPSHOTS)]
    disk.unlink(path)
    with pytest.raises(ReplicaError, match="missing"):
        world.start("a")


def test_h6_failed_install_is_not_acknowledged(make: Maker) -> None:
    """H6: a leader commits nothing by a follower that could not read its snapshot."""
    assert scenarios.h6_failed_snapshot_install_is_acknowledged(make) == set()
    world = make.last
    assert world.acknowledged.isdisjoint(scenarios.names("late", 5))
    assert installed(world, "a") == 0
    assert "snapshot_failed" in [event.kind for event in world.nodes["a"].events]


def test_h7_snapshot_again_wipes_nothing(make: Maker) -> None:
    """H7: a snapshot that is no news leaves the newer entries alone."""
    assert scenarios.h7_old_snapshot_wipes_newer_entries(make) == set()
    assert any("late5" in world.acknowledged for world in make.worlds)


def test_h7_repeated_snapshot_messages_change_nothing(make: Maker) -> None:
    """H7: a whole snapshot delivered a second time is acknowledged and not installed."""
    world = scenarios.led_by_a(make)
    world.network.isolate("c")
    world.write("a", *scenarios.names("early", 10))
    world.compact("a")
    world.network.connect("a", "c")
    world.run(1.0)
    assert installed(world, "c") == 1
    chunks = [
        event.payload
        for event in world.network.trace
        if event.what == "send" and isinstance(message_of(event), wire.SnapshotChunk)
    ]
    world.write("a", *scenarios.names("late", 10))
    world.run(0.2)
    before = world.nodes["c"].group.last_index
    for chunk in chunks:
        world.network.send("a", "c", chunk)
    world.run(0.5)
    assert chunks
    assert installed(world, "c") == 1
    assert world.nodes["c"].group.last_index == before
    assert world.values("c") == world.values("a")


def test_h8_power_loss_forgets_nothing_acknowledged(make: Maker) -> None:
    """H8: what was acknowledged is there after a power loss of all nodes."""
    assert scenarios.h8_power_loss_forgets_acknowledged_entries(make) == set()
    assert "late10" in make.last.values("a")


def test_h8_power_loss_forgets_no_vote(make: Maker) -> None:
    """H8: a vote that left is remembered; the second candidate wins a later term."""
    assert scenarios.h8_power_loss_forgets_a_vote(make) == {}
    assert make.last.leads("c")
    assert make.last.term("c") > 1


def test_h9_cut_off_leader_commits_nothing(make: Maker) -> None:
    """H9: a restarted leader without its peers acknowledges nothing."""
    assert scenarios.h9_commit_index_beyond_the_log(make) == set()
    assert make.last.answers["alone"] in ([], ["unknown"])
    assert "early10" in make.last.values("b")


def test_h10_acknowledgement_of_an_older_term_is_ignored(make: Maker) -> None:
    """H10: acknowledgements of an older term commit nothing."""
    assert scenarios.h10_acknowledgement_of_an_older_term_counts(make) == set()
    delivered = [event for event in make.last.network.trace if event.what == "deliver"]
    stale = [
        event
        for event in delivered
        if event.link == ("b", "a")
        and isinstance(message := message_of(event), wire.AppendResponse)
        and message.term == 1
        and message.success
        and message.next_index > 7  # beyond the entries that a proposes later
    ]
    term_of_a = max(
        message.term
        for event in delivered
        if isinstance(message := message_of(event), wire.AppendEntries) and event.link.source == "a"
    )
    assert stale
    assert term_of_a > 1


def test_h11_one_voter_counts_once(make: Maker) -> None:
    """H11: repeating one voter's answers elects nobody."""
    assert scenarios.h11_one_voter_counts_twice(make) == {}
    assert not make.last.leads("a")
    assert make.last.leads("c")


def candidate_of_five(make: Maker) -> Group:
    """Replica ``a`` as a candidate of term 1 without any other vote than its own."""
    world = make("abcde")
    for other in "bcde":
        world.network.hold("a", other)
    group = world.nodes["a"].group
    group._replica._campaign._pre_vote_won = True  # as if a majority had agreed
    world.expire("a")
    world.turn("a")
    assert group.term == 1
    assert not group.is_leader
    return group


def test_h11_the_same_voter_again_does_not_count(make: Maker) -> None:
    """H11: a majority is of members, not of messages."""
    group = candidate_of_five(make)
    for _ in range(5):
        group.receive("b", wire.VoteResponse(1))
    assert not group.is_leader
    group.receive("c", wire.VoteResponse(1))
    assert group.is_leader


def test_h11_strangers_do_not_count(make: Maker) -> None:
    """H11: votes of nodes that are no members change nothing."""
    group = candidate_of_five(make)
    for stranger in ("x", "y", "z"):
        group.receive(stranger, wire.VoteResponse(1))
    assert not group.is_leader


def test_h11_votes_of_another_term_do_not_count(make: Maker) -> None:
    """H11: a vote counts in its own term only."""
    group = candidate_of_five(make)
    for voter in "bcde":
        group.receive(voter, wire.VoteResponse(0))
    assert not group.is_leader


def test_h12_callback_that_raises_applies_once(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """H12: an exception of a callback is logged with its trace, and the entry is applied once."""
    assert scenarios.h12_callback_that_raises(make) == set()
    assert make.last.values("a") == ["base", "once"]
    assert [r.exc_info[0] for r in caplog.records if r.exc_info] == [ZeroDivisionError]


def test_h12_callback_that_raises_costs_others_nothing(make: Maker) -> None:
    """H12: writers in the same entry are answered although another's callback raises."""
    world = scenarios.led_by_a(make, "a")

    def raising(_: object) -> None:
        raise ZeroDivisionError("raised by a callback")

    world.submit("a", "first", raising, 0)
    world.propose("a", "second")
    world.run(0.5)
    assert world.answers["second"] == ["ok"]


@pytest.mark.parametrize("kind", [b"\x02", b"\x03", b"\x04", b""], ids=repr)
def test_h12_entry_of_unknown_kind_stops_the_replica(make: Maker, kind: bytes) -> None:
    """H12: membership, version and unknown entries are never applied, nor skipped."""
    world = scenarios.led_by_a(make)
    world.network.isolate("b")
    group = world.nodes["b"].group
    index = group.last_index
    forged = wire.AppendEntries(
        group.term, index, group.journal.last_term, index + 1, ((kind, group.term),)
    )
    group.receive("a", forged)
    with pytest.raises(ReplicaError, match="kind"):
        group.tick()
    assert group.applied_index == index


def test_h12_undecodable_command_stops_the_replica(make: Maker) -> None:
    """H12: a command that cannot be decoded stops the replica, every time it is tried."""
    world = scenarios.led_by_a(make)
    world.network.isolate("b")
    group = world.nodes["b"].group
    index = group.last_index
    entry = (b"\x00not a batch", group.term)
    group.receive(
        "a", wire.AppendEntries(group.term, index, group.journal.last_term, index + 1, (entry,))
    )
    for _ in range(2):
        with pytest.raises(ReplicaError, match=f"entry {index + 1}"):
            group.tick()
    assert group.applied_index == index


def test_h13_large_entries_go_whole(make: Maker) -> None:
    """H13: writes around the message size are replicated without an error."""
    assert scenarios.h13_large_entries(make) == set()


def test_h13_entry_larger_than_a_message(make: Maker) -> None:
    """H13: an entry above the message size travels in one message, not in pieces."""
    world = scenarios.led_by_a(make)
    world.propose("a", "large", size=2 * MESSAGE_BYTES_MAX)
    world.run(1.0)
    assert world.acknowledged >= {"large"}
    assert world.values("c") == ["base", "large"]
    assert world.errors == []


def test_h13_messages_have_no_field_for_pieces() -> None:
    """H13: the wire knows no 'transmission', no 'serialized', and no field it does not expect."""
    envelope = msgspec.msgpack.Decoder(wire.Envelope)
    whole = msgspec.msgpack.encode(wire.Envelope(0, 1, wire.AppendEntries(1, 1, 1, 1)))
    assert envelope.decode(whole).message == wire.AppendEntries(1, 1, 1, 1)
    fields = {
        field for message in wire.Wire.__subclasses__() for field in message.__struct_fields__
    }
    assert fields.isdisjoint({"transmission", "serialized", "request_id", "command"})


def test_h14_writers_are_answered(make: Maker) -> None:
    """H14: every write that waited when leadership was lost is answered, without more writes."""
    assert scenarios.h14_writers_never_answered(make) == set()
    assert all(len(outcomes) == 1 for outcomes in make.last.answers.values())


def test_h14_stopping_answers_everyone(make: Maker) -> None:
    """H14: a replica that is stopped answers who waits, and says unknown of what was proposed."""
    world = scenarios.led_by_a(make)
    world.network.isolate("a")
    world.propose("a", "proposed")
    world.turn("a")
    world.propose("a", "waiting")
    world.nodes["a"].group.stop()
    assert world.answers["proposed"] == ["unknown"]
    assert world.answers["waiting"] == ["no"]
    assert unanswered(world) == set()


def test_h15_deposed_leader_serves_no_stale_read(make: Maker) -> None:
    """H15: a cut-off leader answers no linearizable read."""
    assert scenarios.h15_deposed_leader_serves_stale_reads(make) == set()
    assert "news" in make.last.acknowledged


def test_h16_log_is_trimmed_after_the_snapshot(make: Maker) -> None:
    """H16: the log is trimmed only once the snapshot is in place."""
    assert scenarios.h16_log_is_trimmed_without_a_snapshot(make) == set()
    assert make.last.nodes["a"].group.journal.first_index > 1
    assert "early10" in make.last.values("a")


def test_h17_batch_mode_is_always_on(make: Maker) -> None:
    """H17: there is no pipe that could be full; proposals never enter stock's queue."""
    world = scenarios.led_by_a(make)
    stock = world.nodes["a"].group._replica._stock
    conf = stock._getConf()
    assert isinstance(conf, SyncObjConf)
    assert conf.appendEntriesUseBatch
    assert not hasattr(stock, "_SyncObj__pipeNotifier")


def test_h18_full_disk_stops_the_node(make: Maker) -> None:
    """H18: a node whose log cannot be written stops, and restarts with what its disk holds."""
    assert scenarios.h18_full_disk_parts_memory_and_log(make) == set()
    assert make.errors() == {DiskFull}
    assert "unlucky" not in make.last.acknowledged


def test_h19_emptied_disk_does_not_start(make: Maker) -> None:
    """H19: a node does not start on an empty disk; links refuse other identities (test_links)."""
    assert scenarios.h19_emptied_disk_votes_again(make) == set()
    assert "b" not in make.last.live
    assert make.errors() == {NoSuchFile}


def test_h20_leader_with_a_stalled_disk_gives_way(make: Maker) -> None:
    """H20: while a leader's disk owes a sync, others lead and take writes."""
    assert scenarios.h20_leader_with_a_dead_disk(make) == set()
    assert not make.last.leads("a")


def test_h21_queued_write_fails_with_its_leadership(make: Maker) -> None:
    """H21: a write that was queued when leadership was lost is refused, definitely."""
    assert scenarios.h21_queued_write_survives_its_leadership(make) == set()
    assert make.last.answers["late"] == ["no"]


def test_no_pickle_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, log, wire and snapshots never go through pickle, in either direction."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for function in ("dumps", "loads", "dump", "load"):
        monkeypatch.setattr(f"pysyncobj.pickle.{function}", refuse)
        monkeypatch.setattr(f"pickle.{function}", refuse)
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("c")
    world.write("a", *scenarios.names("early", 5))
    world.compact("a")
    world.network.connect_all()
    world.run(1.0)
    world.crash("b")
    world.start("b")
    world.network.connect_all()
    world.run(1.0)
    assert world.values("c") == world.values("b") == world.values("a")
    assert world.errors == []
