"""Catching up by snapshot, when leaders, snapshots and links change in the middle of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import scenarios
from group_world import GROUP, WAL, GroupWorld, make_group_world, message_of

from raftkv.core.shard.machine import StateMachine
from raftkv.raft import messages as wire
from raftkv.raft import replication, snapshot_transfer
from raftkv.sim.disk import SECTOR_BYTES, SimDisk
from raftkv.storage.wal_format import SEGMENT_HEADER

CHUNKS_MIN = 3 * snapshot_transfer.WINDOW_CHUNKS
"""Snapshots here are more than a window, so that a transfer needs its progress messages."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send snapshots in small chunks, so that small states make long transfers."""
    monkeypatch.setattr(snapshot_transfer, "CHUNK_BYTES", 1024)


def world_with_c_behind(*, compacted: str) -> GroupWorld:
    """``a`` leads; ``c`` is cut off and needs a snapshot from whoever is in ``compacted``."""
    world = scenarios.led_by_a(make_group_world)
    world.network.isolate("c")
    for batch in range(4):
        world.propose("a", *scenarios.names(f"batch{batch}-", 10), size=1024)
        world.run(0.1)
    world.run(0.2)
    for name in compacted:
        world.compact(name)
    return world


def chunks_sent(world: GroupWorld, source: str, target: str) -> int:
    """How many pieces of snapshots have left."""
    return sum(
        event.what == "send"
        and event.link == (source, target)
        and isinstance(message_of(event), wire.SnapshotChunk)
        for event in world.network.trace
    )


def caught_up(world: GroupWorld, name: str, leader: str) -> Callable[[], bool]:
    """Whether ``name`` has applied all that the leader has."""
    return lambda: world.nodes[name].group.applied_index == world.nodes[leader].group.applied_index


def begin_transfer(world: GroupWorld) -> None:
    """Let some chunks from ``a`` reach ``c``, not all, and cut ``a`` off."""
    world.network.connect("a", "c")
    world.run(1.0, until=lambda: world.nodes["c"].group.installing_snapshot)
    world.network.isolate("a")
    assert 0 < chunks_sent(world, "a", "c") < CHUNKS_MIN


def test_snapshot_goes_on_beside_writes() -> None:
    """A follower beyond the log is caught up in windows while writes go on."""
    world = world_with_c_behind(compacted="ab")
    world.network.connect("a", "c")
    for number in range(20):
        world.propose("a", f"meanwhile{number}")
        world.run(0.02)
    assert world.run(2.0, until=caught_up(world, "c", "a"))
    assert chunks_sent(world, "a", "c") >= CHUNKS_MIN
    assert world.values("c") == world.values("a")
    assert world.acknowledged == set(world.answers)


def test_an_older_snapshot_does_not_take_the_place_of_a_newer_one() -> None:
    """One that was being written while a newer one was installed."""
    world = scenarios.led_by_a(make_group_world)
    scenarios.propose_apart(world, "a", ["one", "two"])
    world.compact("a")
    compaction = world.nodes["a"].group.compaction
    newest = compaction.snapshot_index
    compaction.snapshot_written(newest - 1)
    assert compaction.snapshot_index == newest


def test_a_follower_that_lags_gets_no_storm_of_appends() -> None:
    """While a snapshot is on its way, leader and follower do not answer each other for ever."""
    world = world_with_c_behind(compacted="ab")
    world.network.connect("a", "c")
    world.network.trace.clear()
    world.network.connect_all()
    world.run(0.5)
    appends = [
        event
        for event in world.network.trace
        if event.what == "send"
        and event.link == ("a", "c")
        and isinstance(message_of(event), wire.AppendEntries)
    ]
    assert len(appends) < 40


def test_crash_at_any_message_of_a_transfer_is_harmless() -> None:
    """A receiver that crashes after any message starts again and catches up."""
    for delivered in range(1, 200, 7):
        world = world_with_c_behind(compacted="ab")
        world.network.connect("a", "c")
        for _ in range(delivered):
            world.network.deliver_oldest()
            for name in "abc":
                world.turn(name)
            world.clock.advance(0.002)
        world.lose_some("c", world.random)
        world.start("c")
        world.network.connect_all()
        assert world.run(8.0, until=caught_up(world, "c", "a"))
        assert world.values("c") == world.values("a")


def test_a_new_leader_takes_over_a_transfer() -> None:
    """When the sender is deposed, the next leader's transfer of the same snapshot succeeds."""
    world = world_with_c_behind(compacted="ab")
    begin_transfer(world)
    world.network.connect("b", "c")
    world.elect("b")
    assert world.run(20.0, until=caught_up(world, "c", "b"))


class FileOf40Chunks:
    """A reader whose chunks say nothing."""

    def records(self) -> Iterator[bytes]:
        """Return none."""
        return iter(())

    def read_chunk(self, offset: int, length: int) -> bytes:
        """Return nothing but zeros, up to the end."""
        return bytes(min(length, 40 * snapshot_transfer.CHUNK_BYTES - offset))

    def close(self) -> None:
        """Let go of nothing."""


def test_a_sender_goes_on_where_an_earlier_one_was_heard() -> None:
    """A receiver outlives its link: what it has written since is not sent again, nor counted.

    What is under way to it stays within the window, though it acknowledges more than this sender
    has sent.
    """
    sent: list[wire.SnapshotChunk] = []
    chunk_bytes, window = snapshot_transfer.CHUNK_BYTES, snapshot_transfer.WINDOW_CHUNKS
    sender = snapshot_transfer.Sender(
        snapshot_transfer.SnapshotId(7, 1, 40 * chunk_bytes),
        reader=FileOf40Chunks(),
        run_job=lambda job, done: done(job(), None),
        send=sent.append,
        failed=lambda error: pytest.fail(str(error)),
        now=0.0,
    )
    sender.go_on(1)
    assert [chunk.offset for chunk in sent] == [n * chunk_bytes for n in range(window)]
    sent.clear()
    sender.on_progress(wire.SnapshotProgress(1, 7, 20 * chunk_bytes, in_order=True), 0.0)
    assert [chunk.offset for chunk in sent] == [(20 + n) * chunk_bytes for n in range(window)]


def test_an_abandoned_transfer_leaves_nothing_behind() -> None:
    """A replica that caught up by entries instead may write snapshots of its own again."""
    world = world_with_c_behind(compacted="a")
    begin_transfer(world)
    world.network.connect("b", "c")
    world.elect("b")
    world.write("b", "after")
    assert world.run(5.0, until=caught_up(world, "c", "b"))
    world.run(10.0)
    assert not world.nodes["c"].group.installing_snapshot
    assert world.nodes["c"].group.compaction.may_snapshot


def test_a_snapshot_replaced_while_it_is_opened() -> None:
    """An open snapshot keeps its name and its state when a newer one takes its place."""
    world = world_with_c_behind(compacted="ab")
    group, files = world.nodes["a"].group, world.nodes["a"].files
    before = files.open()
    assert before is not None
    old_digest = group.state.digest
    world.propose("a", *scenarios.names("batch0-", 3), size=1024)  # the same keys: the same size
    world.run(0.2)
    world.compact("a", finish=False)
    after = files.open()
    assert after is not None
    assert after[0].size_bytes == before[0].size_bytes
    assert after[0].index > before[0].index
    restorer = StateMachine.restore(group.id.generation, group.config.owns)
    for record in before[1].records():
        restorer.feed(record)
    assert restorer.finish().digest == old_digest


def test_a_newer_snapshot_while_one_is_being_finished() -> None:
    """A transfer that replaces another never puts half a snapshot in place."""
    world = world_with_c_behind(compacted="a")
    whole = snapshot_chunk_of(world, "a")
    world.write("a", "newer")
    world.compact("a")
    beginning = snapshot_chunk_of(world, "a", 1024)
    node = world.nodes["c"]
    node.group.receive("a", whole)
    node.run_a_job()  # writes it; the job that finishes the file is next
    node.group.receive("b", beginning)
    node._jobs.rotate(-1)  # the other thread writes the beginning of the newer one first
    while node._jobs:
        node.run_a_job()
    world.crash("c")
    world.start("c")
    assert "c" in world.live


def snapshot_chunk_of(world: GroupWorld, name: str, length: int = 2**30) -> wire.SnapshotChunk:
    """The first bytes of a replica's snapshot as the message that carries them."""
    reader = world.nodes[name].snapshots.open(GROUP)
    assert reader is not None
    header, size = reader.header, reader.size
    content = reader.read_chunk(0, length)
    term = world.term(name)
    return wire.SnapshotChunk(term, header.index, header.term, size, 0, content)


def test_a_follower_whose_disk_lost_the_last_unit_is_given_it_again() -> None:
    """A disk that lost a synced sector of the last unit looks as if it had never got it.

    The leader, still in its term, believes that the follower has it. It is told once that the disk
    forgets, and sends the entries again instead of being refused for ever.
    """
    world = scenarios.led_by_a(make_group_world)
    world.write("a", "kept", "rotten")
    assert world.run(1.0, until=lambda: "rotten" in world.values("c"))
    world.crash("c")
    disk = world.disks["c"]
    (log,) = [WAL / name for name in disk.listdir(WAL) if is_written(disk, WAL / name)]
    content = disk.open(log).pread(disk.size_of(log), 0).rstrip(b"\0")
    disk.shear(log, (len(content) - 1) // SECTOR_BYTES, 0)
    world.start("c")
    world.network.trace.clear()
    world.network.connect_all()
    assert world.run(2.0, until=caught_up(world, "c", "a"))
    world.run(0.5)
    lost = [event for event in world.nodes["a"].events if event.kind == "entries_lost"]
    assert len(lost) == 1
    assert "c had acknowledged entries" in lost[0].detail
    assert refusals(world, "c", "a") <= 2
    assert "rotten" in world.values("c")


@pytest.mark.parametrize("restarts", [False, True])
def test_a_follower_whose_log_differs_above_what_it_acknowledged_has_lost_nothing(
    monkeypatch: pytest.MonkeyPatch,
    restarts: bool,  # noqa: FBT001 -- whether it remembers what it acknowledged
) -> None:
    """It backs off by a whole term, below that; its disk is not to blame.

    All nodes were restarted, so nobody knows what is committed; ``c`` has a tail of term 1 and has
    taken the first entries of ``a`` over it when the link breaks.
    """
    monkeypatch.setattr(replication, "MESSAGE_BYTES_MAX", 1)  # one entry in each append
    world = make_group_world("abc")
    world.elect("c")
    world.write("c", "p1", "p2", "p3", "p4")
    world.run(0.5)
    world.network.isolate("c")
    world.propose("c", "x1", "x2", "x3", "x4")
    world.turn("c")
    world.elect("a")
    world.crash("b")
    world.propose("a", "y1", "y2", "y3", "y4")
    world.turn("a")
    for name in "ac":
        world.crash(name)
    for name in "ab":
        world.start(name)
    world.network.connect("a", "b")
    world.elect("a")
    world.crash("b")
    leader = world.nodes["a"].group
    world.start("c")
    world.network.connect("a", "c")
    for _ in range(60):
        if leader.match_index("c") >= 3:
            break
        step(world, "a", "c")
    assert 3 <= leader.match_index("c") < world.nodes["c"].group.last_index
    world.network.cut("a", "c")
    if restarts:
        world.crash("c")
        world.start("c")
    world.network.connect("a", "c")
    assert world.run(2.0, until=lambda: "y4" in world.values("c"))
    assert not [event for event in world.nodes["a"].events if event.kind == "entries_lost"]


def step(world: GroupWorld, one: str, other: str) -> None:
    """Let a little time pass, and one message each way."""
    world.clock.advance(0.01)
    for name in sorted(world.live):
        world.turn(name)
    world.deliver_link(one, other, 1)
    world.deliver_link(other, one, 1)


def is_written(disk: SimDisk, path: Path) -> bool:
    """Whether anything of a unit is in the file, beyond the head of the segment."""
    return len(disk.open(path).pread(disk.size_of(path), 0).rstrip(b"\0")) > SEGMENT_HEADER.size


def refusals(world: GroupWorld, source: str, target: str) -> int:
    """How many appends were refused."""
    return sum(
        event.what == "send"
        and event.link == (source, target)
        and isinstance(message := message_of(event), wire.AppendResponse)
        and not message.success
        for event in world.network.trace
    )


def test_a_follower_commits_no_further_than_it_has_entries() -> None:
    """A leader says how far everything is committed, also to one that is still behind."""
    world = scenarios.led_by_a(make_group_world)
    group = world.nodes["b"].group
    last = (group.last_index, group.journal.last_term)
    group.receive("a", wire.AppendEntries(group.term, *last, commit_index=group.last_index + 5))
    assert group.commit_index == group.last_index
    world.write("a", "after")
    assert world.run(1.0, until=lambda: "after" in world.values("b"))
