"""What snapshots that a follower needs may cost: little where it has no room, few files at once."""

from collections.abc import Callable
from typing import Any

import pytest

from raftkv.core.cluster_map import GroupId
from raftkv.core.operations import Command, Put
from raftkv.engine.snapshot_keeper import write_records
from raftkv.raft import messages as wire
from raftkv.raft.snapshot_transfer import Sender
from raftkv.sim.disk import SimDisk, SimFile
from raftkv.storage.snapshots import OPEN_MAX, SnapshotHeader
from tests.engine.host_world import GROUP, HostWorld, Machine

MIB = 2**20
VALUE = bytes(100_000)


def compact(machine: Machine, group_id: GroupId) -> None:
    """Write the group's snapshot, and let go of its log."""
    group = machine.group(group_id)
    index, term = group.compaction.snapshot_point()
    header = SnapshotHeader(group_id, index, term, group.state.digest.to_bytes(16, "big"))
    write_records(machine.store, header, group.state.snapshot_records())
    machine.store.publish(group_id)
    group.compaction.snapshot_written(index)
    group.compaction.release_log()


def needs_snapshots(shards: int, value: bytes, keys: int) -> tuple[HostWorld, Machine]:
    """A world one of whose machines is down, and needs a snapshot of every group when it starts."""
    world = HostWorld(shards=shards)
    for group_id in world.group_ids:
        world.leader(group_id)
    down = world.machines["n3"]
    down.kill()
    for group_id in world.group_ids:
        group = world.leader(group_id).group(group_id)
        for number in range(keys):
            group.propose((Command(Put(b"%d" % number, value)),), lambda _: None)
            world.run(0.05)
    world.run(1.0)
    for group_id in world.group_ids:
        compact(world.leader(group_id), group_id)
    return world, down


def bytes_sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that the sizes of all chunks are added to."""
    sent: list[int] = []
    make = Sender.__init__

    def counting(self: Sender, *arguments: Any, send: Callable[..., None], **named: Any) -> None:
        def send_and_count(chunk: wire.SnapshotChunk) -> None:
            sent.append(len(chunk.data))
            send(chunk)

        make(self, *arguments, send=send_and_count, **named)

    monkeypatch.setattr(Sender, "__init__", counting)
    return sent


def test_a_follower_without_room_is_asked_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says for how long it takes none; it writes nothing that does not fit, and heals."""
    sent = bytes_sent(monkeypatch)
    world, full = needs_snapshots(1, VALUE, 40)
    leader = world.leader()
    free = 1 * MIB
    full.disk.capacity_bytes = full.disk.used_bytes() + free
    full.start()
    world.run(120.0)
    assert sum(sent) < 4 * MIB, "8 tries in two minutes, of a chunk or two each"
    assert full.host.event_counts["snapshot_failed"] <= 8
    assert full.disk.free_bytes(full.store.path(GROUP).parent) == free, "room for the log"
    full.disk.capacity_bytes = None
    world.run(60.0)
    assert full.group().applied_index == leader.group().applied_index


def test_room_that_runs_out_meanwhile_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other files can take it; what was received until then is removed at once."""
    sent = bytes_sent(monkeypatch)
    world, full = needs_snapshots(1, VALUE, 40)
    monkeypatch.setattr(SimDisk, "free_bytes", lambda *_: 2**62)
    full.disk.capacity_bytes = full.disk.used_bytes() + 3 * MIB
    full.start()
    used = full.disk.used_bytes()
    world.run(60.0)
    assert full.disk.used_bytes() - used < MIB
    assert sum(sent) < 32 * MIB


def test_few_files_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower needs snapshots of many groups: it gets all of them, a few at a time."""
    world, down = needs_snapshots(4 * OPEN_MAX, b"v", 3)
    peaks = dict.fromkeys(world.names, 0)
    is_open: dict[int, set[int]] = {}

    def count(method: Callable[..., SimFile]) -> Callable[..., SimFile]:
        def counting(self: SimDisk, *arguments: Any, **named: Any) -> SimFile:
            file = method(self, *arguments, **named)
            is_open.setdefault(id(self), set()).add(id(file))
            for name, machine in world.machines.items():
                peaks[name] = max(peaks[name], len(is_open.get(id(machine.disk), ())))
            return file

        return counting

    close = SimFile.close

    def closing(self: SimFile) -> None:
        for files in is_open.values():
            files.discard(id(self))
        close(self)

    monkeypatch.setattr(SimDisk, "open", count(SimDisk.open))
    monkeypatch.setattr(SimDisk, "create", count(SimDisk.create))
    monkeypatch.setattr(SimFile, "close", closing)
    down.start()

    def behind() -> list[GroupId]:
        return [
            group_id
            for group_id in world.group_ids
            if down.group(group_id).applied_index
            < world.leader(group_id).group(group_id).applied_index
        ]

    world.run_until(lambda: not behind(), within_s=30.0)
    assert down.host.event_counts["snapshot_installed"] == 4 * OPEN_MAX
    assert down.host.event_counts.get("snapshot_failed", 0) == 0
    assert max(peaks.values()) <= OPEN_MAX + 4, "the log and its spares have some too"
