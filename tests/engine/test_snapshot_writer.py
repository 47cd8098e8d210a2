"""The forked child that writes a snapshot, and what becomes of one that does not go on."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from engine_world import table_of
from host_world import HostWorld
from test_snapshot_turns import BusyGroup

from raftkv.core.cluster_map import GroupId
from raftkv.core.placement import seed_map
from raftkv.engine.directory import Directory
from raftkv.engine.jobs import JobDone
from raftkv.engine.snapshot_keeper import (
    ForkingWriter,
    InTurnWriter,
    Progress,
    SnapshotKeeper,
    WriterStalledError,
    write_records,
)
from raftkv.engine.stalls import StallCounter
from raftkv.raft.group import Group
from raftkv.raft.host import SnapshotPolicy
from raftkv.sim.disk import SimDisk
from raftkv.storage.disk import DiskFull, RealDisk
from raftkv.storage.snapshots import SnapshotHeader, SnapshotStore

GROUP = GroupId(0, 1)
HEADER = SnapshotHeader(GROUP, 5, 1)


class JobsHere:
    """Runs a job where it is asked for, and hands back what it raised."""

    def run(self, job: Callable[[], Any], done: JobDone) -> None:
        """Run it."""
        try:
            result = job()
        except Exception as error:  # noqa: BLE001 -- as a thread pool does
            done(None, error)
        else:
            done(result, None)

    def close(self) -> None:
        """Nothing runs any more."""


def group_of(records: Iterable[bytes]) -> Group:
    """A group that is written as these records."""
    state = SimpleNamespace(snapshot_records=lambda: iter(records))
    return cast("Group", SimpleNamespace(state=state))


def outcome_of(writer: ForkingWriter, records: Iterable[bytes]) -> BaseException | None:
    """Write, and return what went wrong."""
    outcomes: list[BaseException | None] = []
    writer.write(HEADER, group_of(records), outcomes.append)
    (outcome,) = outcomes
    return outcome


def hangs() -> Iterator[bytes]:
    """One record, and then nothing for longer than any test takes."""
    yield bytes(2 << 20)
    time.sleep(3600)
    yield b"never"


def test_a_child_that_hangs_is_killed_and_lets_go_of_its_place(tmp_path: Path) -> None:
    """Nothing of it is left: no process, no file; the next one is written."""
    store = SnapshotStore(RealDisk(), tmp_path)
    writer = ForkingWriter(store, JobsHere(), patience_s=0.1)
    outcome = outcome_of(writer, hangs())
    assert isinstance(outcome, WriterStalledError)
    assert "wrote nothing for 0.1 s: killed" in str(outcome)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    patient = ForkingWriter(store, JobsHere())
    assert outcome_of(patient, [b"one", b"two"]) is None
    store.publish(GROUP)
    assert store.header(GROUP) == HEADER


def test_a_child_that_cannot_end_holds_no_place_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a disk, say, and is collected when it has ended, before the next is begun."""
    store = SnapshotStore(RealDisk(), tmp_path)
    writer = ForkingWriter(store, JobsHere(), patience_s=0.1)
    killed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, _: killed.append(pid))
        patch.setattr("raftkv.engine.snapshot_keeper._LAST_LOOKS", 3)
        assert isinstance(outcome_of(writer, hangs()), WriterStalledError)
    (pid,) = killed
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it lives"
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    writer._patience_s = 60.0
    assert outcome_of(writer, [b"one"]) is None
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_a_child_that_goes_on_is_waited_for() -> None:
    """However slowly: only looks between which nothing was written count."""
    patience = StallCounter(50)
    for count in range(10):
        assert not any(patience.is_over(count) for _ in range(40))
    assert any(patience.is_over(9) for _ in range(40))


def test_progress_is_seen_across_a_fork() -> None:
    """What the child counts is what the parent reads."""
    progress = Progress()
    pid = os.fork()
    if pid == 0:
        for _ in progress.counting([b""] * 7):
            pass
        os._exit(0)
    os.waitpid(pid, 0)
    assert progress.count == 7


def test_what_does_not_fit_leaves_nothing_on_the_disk() -> None:
    """A half-written snapshot would keep a full disk full."""
    directory = Path("/snapshots")
    disk = SimDisk()
    disk.make_directory(directory)
    store = SnapshotStore(disk, directory)

    def full(operation: str, path: Path) -> None:
        if operation == "pwrite":
            raise DiskFull(path, operation, "No space left on device")

    disk.before = full
    with pytest.raises(DiskFull):
        write_records(store, HEADER, [bytes(2 << 20)])
    assert disk.listdir(directory) == []


class FailingWriter:
    """Fails for some groups; the others are written in turn."""

    def __init__(self, store: SnapshotStore, *failing: GroupId) -> None:
        self.failing = set(failing)
        self.tries = 0
        self._in_turn = InTurnWriter(store)

    def write(
        self, header: SnapshotHeader, group: Group, done: Callable[[BaseException | None], None]
    ) -> None:
        """Fail, or write."""
        if header.group in self.failing:
            self.tries += 1
            done(OSError("no"))
        else:
            self._in_turn.write(header, group, done)

    def settle(self) -> None:
        """Nothing."""


def test_a_snapshot_that_fails_is_tried_ever_more_rarely_and_holds_up_no_other() -> None:
    """At once, then after ever more checks, which come every second; a success begins anew."""
    directory = Path("/snapshots")
    disk = SimDisk()
    disk.make_directory(directory)
    store = SnapshotStore(disk, directory)
    groups = {group.id: group for group in map(BusyGroup, range(2))}
    bad, good = groups.values()
    writer = FailingWriter(store, bad.id)
    table = table_of(groups.values(), Directory(seed_map("test", ["n1"], 2, 1)))
    keeper = SnapshotKeeper(table, store, writer, JobsHere(), list)
    for _ in range(300):
        keeper.check()
    assert 8 <= writer.tries <= 10
    assert len(good.written) == 300 - writer.tries
    writer.failing.clear()
    for _ in range(300):
        keeper.check()
    assert len(bad.written) > 20


def test_an_idle_group_that_fails_waits_as_well() -> None:
    """One that is written only because its old entries keep the log's segments."""
    world = HostWorld(policy=SnapshotPolicy())
    leader = world.leader()
    world.put_all(leader, b"k")
    writer = FailingWriter(leader.store, leader.group().id)
    leader.keeper._writer = writer
    leader.keeper._pinning = lambda: [leader.group().id]
    for _ in range(100):
        leader.keeper.check()
        world.run(0.01)
    assert 6 <= writer.tries <= 8


def test_a_child_that_somebody_kills_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    """The kernel, say, for want of memory: what it wrote would keep a full disk full."""

    def killed() -> Iterator[bytes]:
        yield bytes(2 << 20)
        os.kill(os.getpid(), 9)
        yield b"never"

    writer = ForkingWriter(SnapshotStore(RealDisk(), tmp_path), JobsHere())
    assert "ended with signal 9" in str(outcome_of(writer, killed()))
    assert list(tmp_path.iterdir()) == []


def test_a_child_says_what_went_wrong(tmp_path: Path) -> None:
    """To its parent, which logs it: standard error may take nothing."""

    def fails() -> Iterator[bytes]:
        yield b"one"
        raise ValueError("no such record")

    writer = ForkingWriter(SnapshotStore(RealDisk(), tmp_path), JobsHere())
    outcome = outcome_of(writer, fails())
    assert str(outcome).endswith("exit code 1: ValueError: no such record")


def test_what_cannot_fit_is_not_begun() -> None:
    """It would take room that the log needs, only to fail."""
    world = HostWorld(policy=SnapshotPolicy())
    leader = world.leader()
    world.put_all(leader, *(b"%d" % n + bytes(1000) for n in range(50)))
    leader.disk.capacity_bytes = leader.disk.used_bytes() + 10_000
    leader.keeper._pinning = lambda: [leader.group().id]
    written: list[Path] = []
    leader.disk.before = lambda operation, path: (
        written.append(path) if operation == "pwrite" and ".snap" in path.name else None
    )
    failed: list[BaseException | None] = []
    leader.keeper.finished = lambda _, error: failed.append(error)
    leader.keeper.check()
    world.run(0.1)
    assert [type(error) for error in failed] == [DiskFull]
    assert written == []
    leader.disk.capacity_bytes = None
    leader.keeper.check()
    leader.keeper.check()
    world.run(0.1)
    assert failed[1:] == [None]
