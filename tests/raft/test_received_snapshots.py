"""A received snapshot takes the old one's place only after a state was built of it."""

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raftkv.core.operations import Command, FreeKey, Put
from raftkv.core.shard.machine import Restorer
from raftkv.core.shard.snapshot import SnapshotHeader as StateHeader
from raftkv.raft import snapshot_transfer
from raftkv.raft.host import GroupBounds
from raftkv.raft.snapshot_exchange import STALLED_S
from raftkv.sim.disk import SimulatedCrash
from raftkv.storage.disk import DiskError, TooManyFiles
from raftkv.storage.snapshots import SnapshotHeader, SnapshotStore
from tests.raft import scenarios
from tests.raft.group_world import GROUP, SNAPSHOTS, GroupNode, GroupWorld, make_group_world
from tests.raft.test_catching_up import caught_up, snapshot_chunk_of

Spoil = Callable[[list[bytes]], list[bytes]]


def c_needs_a_snapshot() -> GroupWorld:
    """``c`` has a snapshot of its own and is cut off; what it lacks is not in the log of ``a``."""
    world = scenarios.led_by_a(make_group_world)
    world.compact("c")
    world.network.isolate("c")
    world.propose("a", *scenarios.names("more", 20), size=1024)
    assert world.run(1.0, until=lambda: len(world.values("a")) == 21)
    return world


def put_in_place(world: GroupWorld, name: str, spoil: Spoil = lambda records: records) -> None:
    """Compact a replica behind a snapshot file that is whole, with the records as spoilt."""
    node = world.nodes[name]
    index, term = node.group.compaction.snapshot_point()
    digest = node.group.state.digest.to_bytes(16, "big")
    writer = node.snapshots.begin(SnapshotHeader(GROUP, index, term, digest))
    for record in spoil(list(node.group.state.snapshot_records())):
        writer.write(record)
    writer.commit()
    node.group.compaction.snapshot_written(index)
    node.group.compaction.release_log()


def with_field(records: list[bytes], name: str, value: object) -> list[bytes]:
    """Another value in the header, which is the first record."""
    fields = msgspec.msgpack.decode(records[0])
    fields[StateHeader.__struct_fields__.index(name)] = value
    return [msgspec.msgpack.encode(fields), *records[1:]]


SPOILT: dict[str, Spoil] = {
    "undecodable": lambda records: [*records[:-1], b"\xc1"],
    "format": lambda records: with_field(records, "format", 99),
    "generation": lambda records: with_field(records, "generation", 7),
    "digest": lambda records: with_field(records, "digest", bytes(16)),
    "incomplete": lambda records: records[:1],
    "empty": lambda _: [],
}


def failures(node: GroupNode) -> list[str]:
    """What was said of snapshots that failed."""
    return [event.detail for event in node.events if event.kind == "snapshot_failed"]


def has_failed(world: GroupWorld, name: str) -> bool:
    """Whether a snapshot has failed there."""
    return bool(failures(world.nodes[name]))


def files_of(world: GroupWorld, name: str) -> int:
    """How many files are in the directory of snapshots."""
    store = world.nodes[name].snapshots
    return len(world.disks[name].listdir(store.path(GROUP).parent))


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_snapshot_that_cannot_be_built_harms_nothing(spoil: Spoil) -> None:
    """The node goes on with the good one, and starts with it."""
    world = c_needs_a_snapshot()
    put_in_place(world, "a", spoil)
    world.network.connect("a", "c")
    assert world.run(3.0, until=lambda: has_failed(world, "c"))
    world.run(0.2)
    assert world.errors == []
    assert world.values("c") == ["base"]
    assert not world.nodes["c"].group.installing_snapshot
    assert files_of(world, "c") == 1
    world.network.isolate("c")
    world.crash("c")
    world.start("c")
    assert world.values("c") == ["base"]


def test_a_bug_in_building_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised: nothing of the replica was touched."""
    world = c_needs_a_snapshot()
    put_in_place(world, "a")

    def bug(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Restorer, "finish", bug)
        world.network.connect("a", "c")
        assert world.run(3.0, until=lambda: has_failed(world, "c"))
    assert world.errors == []
    assert world.run(20.0, until=caught_up(world, "c", "a"))
    assert files_of(world, "c") == 1


def test_a_snapshot_that_failed_is_taken_ever_more_rarely() -> None:
    """Not at each of the leader's tries; another one is taken at once."""
    world = c_needs_a_snapshot()
    put_in_place(world, "a", SPOILT["undecodable"])
    world.network.connect("a", "c")
    world.run(60.0)
    assert 3 <= len(failures(world.nodes["c"])) <= 6
    world.write("a", "newer")
    put_in_place(world, "a")
    assert world.run(6.0, until=caught_up(world, "c", "a"))
    assert world.values("c") == world.values("a")


def test_a_newer_snapshot_follows_at_once_on_one_that_was_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the log was cut again meanwhile; a transfer that is done keeps no place."""
    world = c_needs_a_snapshot()
    put_in_place(world, "a")
    world.network.connect("a", "c")
    with monkeypatch.context() as patch:
        patch.setattr(world.nodes["c"], "run_a_job", lambda: None)  # its disk takes its time
        assert world.run(3.0, until=lambda: world.nodes["c"].group.installing_snapshot)
        world.propose("a", *scenarios.names("newer", 20), size=1024)
        assert world.run(1.0, until=lambda: len(world.values("a")) == 41)
    assert world.values("c") == ["base"]
    put_in_place(world, "a")
    assert world.run(STALLED_S / 2, until=caught_up(world, "c", "a"))
    assert world.values("c") == world.values("a")


def test_a_file_that_is_not_the_announced_one_is_refused() -> None:
    """A replica would take its state for that of another entry."""
    world = c_needs_a_snapshot()
    put_in_place(world, "a")
    node = world.nodes["c"]
    chunk = snapshot_chunk_of(world, "a")
    node.group.receive("a", msgspec.structs.replace(chunk, index=chunk.index + 1))
    world.run(0.2)
    assert "not as announced" in failures(node)[0]
    assert world.values("c") == ["base"]
    assert files_of(world, "c") == 1


def is_down_or_caught_up(world: GroupWorld) -> bool:
    """Whether ``c`` is at its end, one way or the other."""
    return "c" not in world.live or caught_up(world, "c", "a")()


def test_a_crash_at_any_step_leaves_one_good_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation of the receiver's disk may be its last."""
    monkeypatch.setattr(snapshot_transfer, "CHUNK_BYTES", 8 * 1024)
    indexes = set()
    for operation in range(1, 100):
        world = c_needs_a_snapshot()
        put_in_place(world, "a")
        disk = world.disks["c"]
        disk.crash_at = disk.operations + operation
        world.network.connect("a", "c")
        with contextlib.suppress(SimulatedCrash):
            assert world.run(3.0, until=partial(is_down_or_caught_up, world))
            if "c" in world.live:
                break
        if "c" in world.live:  # it was in the middle of a message
            world.crash("c")
        world.network.isolate("c")
        world.disks["c"] = world.disks["c"].crash(world.random)
        world.start("c")
        header = world.nodes["c"].snapshots.header(GROUP)
        assert header is not None
        indexes.add(header.index)
        world.network.connect_all()
        assert world.run(8.0, until=caught_up(world, "c", "a")), operation
    else:
        pytest.fail("the transfer takes more operations than were tried")
    assert len(indexes) == 2, "crashes both before and after the new one took the old one's place"


def test_a_state_is_installed_only_after_its_snapshot_is_durable() -> None:
    """A rename that fails leaves the replica as it was; it is tried again."""
    world = c_needs_a_snapshot()
    put_in_place(world, "a")

    def fails(operation: str, path: Any) -> None:
        if operation == "rename":
            raise DiskError(path, "rename", "Input/output error")

    world.disks["c"].before = fails
    world.network.connect("a", "c")
    assert world.run(3.0, until=lambda: has_failed(world, "c"))
    assert world.errors == []
    assert world.values("c") == ["base"]
    world.disks["c"].before = None
    assert world.run(10.0, until=caught_up(world, "c", "a"))


def test_a_snapshot_whose_name_could_not_be_synced_for_want_of_a_descriptor_is_taken_again() -> (
    None
):
    """No sync was tried, so none has failed, and the node need not start anew."""
    world = c_needs_a_snapshot()
    put_in_place(world, "a")
    disk = world.disks["c"]

    def no_descriptor(operation: str, path: Path) -> None:
        if operation == "fsync_dir" and path == SNAPSHOTS:
            disk.before = None
            raise TooManyFiles(path, "sync", "Too many open files")

    disk.before = no_descriptor
    world.network.connect("a", "c")
    assert world.run(30.0, until=caught_up(world, "c", "a"))
    assert len(failures(world.nodes["c"])) == 1
    assert world.errors == []
    durable = SnapshotStore(disk.crash_choosing(lambda _: 0, lambda _: 0), SNAPSHOTS).header(GROUP)
    assert durable is not None
    assert durable.index == world.nodes["c"].group.compaction.snapshot_index


def test_a_snapshot_that_its_own_leader_cannot_open_stops_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Out of descriptors, say: it goes on leading, and sends it later."""
    world = c_needs_a_snapshot()
    put_in_place(world, "a")

    def fails(store: SnapshotStore, _: Any) -> None:
        raise DiskError(store.path(GROUP), "open", "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(SnapshotStore, "open", fails)
        world.network.connect("a", "c")
        world.run(3.0)
        assert len(failures(world.nodes["a"])) == 1
    assert world.errors == []
    assert world.leads("a")
    assert world.run(6.0, until=caught_up(world, "c", "a"))


def test_who_leads_by_the_time_its_snapshot_is_built_still_forgets() -> None:
    """The clock of a leader looks at the state that it has now, and no name lives longer for it."""
    world = scenarios.led_by_a(make_group_world, bounds=GroupBounds(name_lifetime_s=2.0))
    outcomes: list[Sequence[Any] | Any] = []
    world.nodes["a"].group.propose((Command(Put(b"k", b"v"), FreeKey("k")),), outcomes.append)
    assert world.run(1.0, until=lambda: "k" in world.values("c"))
    world.compact("a")
    world.crash("c")
    world.network.isolate("a")
    world.start("c")  # with every entry in its log, and nothing known to be committed
    group, node = world.nodes["c"].group, world.nodes["c"]
    assert group.applied_index < world.nodes["a"].group.applied_index
    group.receive("a", snapshot_chunk_of(world, "a"))
    slow, node._jobs = node._jobs, deque()  # its disk takes longer than an election
    world.network.connect("b", "c")
    world.elect("c")
    node._jobs.extend(slow)
    while group.installing_snapshot:
        node.run_a_job()
        group.tick()
    assert group.is_leader
    assert [event.kind for event in node.events].count("snapshot_installed") == 1
    assert len(group.state.memory) == 1
    assert world.run(20.0, until=lambda: len(group.state.memory) == 0)
