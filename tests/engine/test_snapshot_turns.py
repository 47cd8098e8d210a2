"""Which group's snapshot is written next."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_world import table_of
from host_world import HostWorld

from raftkv.core.cluster_map import GroupId
from raftkv.core.placement import seed_map
from raftkv.engine.directory import Directory
from raftkv.engine.snapshot_keeper import ForkingWriter, InTurnWriter, SnapshotKeeper
from raftkv.raft.host import SnapshotPolicy
from raftkv.sim.disk import SimDisk
from raftkv.storage.snapshots import SnapshotStore

SHARDS = 3


class BusyGroup:
    """A group under load: its log has grown enough again whenever it is looked at.

    It is its own log compaction.
    """

    class State:
        """An empty state."""

        digest = 7
        bytes_total = 0

        def snapshot_records(self) -> Iterator[bytes]:
            """Return nothing."""
            return iter(())

    def __init__(self, shard: int) -> None:
        self.id = GroupId(shard, 1)
        self.index = 100
        self.state = self.State()
        self.compaction = self
        self.written: list[int] = []

    def is_due(self, _state_bytes: int) -> bool:
        """Always."""
        return True

    def snapshot_point(self) -> tuple[int, int]:
        """A later entry each time."""
        self.index += 100
        return self.index, 1

    def snapshot_written(self, index: int) -> None:
        """Remember it."""
        self.written.append(index)


class JobsAtOnce:
    """Runs a job where it is asked for."""

    def run(
        self, job: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run it."""
        done(job(), None)

    def close(self) -> None:
        """Nothing runs any more."""


def test_groups_under_load_take_turns() -> None:
    """None is passed over because the one before it is due again."""
    directory = Path("/snapshots")
    disk = SimDisk()
    disk.make_directory(directory)
    store = SnapshotStore(disk, directory)
    groups = {group.id: group for group in map(BusyGroup, range(SHARDS))}
    table = table_of(groups.values(), Directory(seed_map("test", ["n1"], SHARDS, 1)))
    keeper = SnapshotKeeper(table, store, InTurnWriter(store), JobsAtOnce(), list)
    for _ in range(SHARDS):
        keeper.check()
    assert [len(group.written) for group in groups.values()] == [1] * SHARDS


def test_a_failed_fork_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without room for another process has its snapshot later, not never."""

    def fails() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fails)
    world = HostWorld(policy=SnapshotPolicy(after_bytes=1000, after_entries=20))
    leader = world.leader()
    for i in range(40):
        world.put_all(leader, b"x%d" % i)
    keeper = leader.keeper
    in_turn, keeper._writer = keeper._writer, ForkingWriter(leader.store, leader.other_jobs)
    keeper.check()
    assert [type(error) for error in leader.snapshots] == [BlockingIOError]
    keeper._writer = in_turn  # the machine has recovered
    for i in range(40):
        world.put_all(leader, b"y%d" % i)
    keeper.check()
    world.run(1.0)
    assert leader.snapshots[1:] == [None]
