"""Writes snapshots beside everything else, and cuts the log after them.

The writer is a seam. In production it is a forked child: it sees the state as it was at the fork,
writes it with the other core, and the engine goes on at once. A simulation writes in turn.
"""

import ctypes
import gc
import logging
import os
import platform
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from raftkv.core.cluster_map import GroupId
from raftkv.core.state_machine import StateMachine
from raftkv.engine.jobs import JobRunner
from raftkv.raft.group import Group
from raftkv.raft.snapshot_transfer import SnapshotId
from raftkv.storage.snapshots import (
    SnapshotHeader,
    SnapshotReader,
    SnapshotReceiver,
    SnapshotStale,
    SnapshotStore,
)

_PR_SET_PDEATHSIG = 1
_NICENESS = 10
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
"""Number of the system call, which the C library has no name for."""
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13

_logger = logging.getLogger(__name__)


class GroupSnapshots:
    """The snapshots of one group in the node's store (``raft.snapshot_transfer.SnapshotFiles``)."""

    def __init__(self, store: SnapshotStore, group: GroupId) -> None:
        self._store = store
        self._group = group

    def open(self) -> tuple[SnapshotId, SnapshotReader] | None:
        """Open the one that is in place."""
        reader = self._store.open(self._group)
        if reader is None:
            return None
        return SnapshotId(reader.header.index, reader.header.term, reader.size), reader

    def receive(self, snapshot: SnapshotId) -> SnapshotReceiver:  # noqa: ARG002 - the file knows
        """Begin to write one that a leader sends."""
        return self._store.receive(self._group)


class SnapshotWriter(Protocol):
    """Writes the state of a group, as it is now, and seals the file."""

    def write(
        self, header: SnapshotHeader, group: Group, done: Callable[[BaseException | None], None]
    ) -> None:
        """Start; ``done(error)`` on the loop once the sealed file is there or not."""

    def settle(self) -> None:
        """Hear that a large new state has come, which is there to stay."""


class InTurnWriter:
    """Writes at once, in this process: for simulations and tests."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store

    def write(
        self, header: SnapshotHeader, group: Group, done: Callable[[BaseException | None], None]
    ) -> None:
        """Write and seal."""
        write_records(self._store, header, group.state.snapshot_records())
        done(None)

    def settle(self) -> None:
        """Nothing: small states need no care."""


class ForkingWriter:
    """Writes in a forked child.

    The child closes every descriptor that it inherits: otherwise the node's sockets would live on
    in it when the node is killed, and peers would wait for a dead node. It asks to be killed with
    its parent for the same reason.
    """

    def __init__(self, store: SnapshotStore, jobs: JobRunner) -> None:
        self._store = store
        self._jobs = jobs

    def write(
        self, header: SnapshotHeader, group: Group, done: Callable[[BaseException | None], None]
    ) -> None:
        """Fork; wait for the child on a thread."""
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no memory, too many processes: later, perhaps
            done(error)
            return
        if pid == 0:
            _be_the_child(
                parent, lambda: write_records(self._store, header, group.state.snapshot_records())
            )

        def waited(status: Any, error: BaseException | None) -> None:
            if error is None and status != 0:
                error = OSError(f"the snapshot writer ended with {_describe(status)}")
            done(error)

        self._jobs.run(lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), waited)

    def settle(self) -> None:
        """Leave the new state out of the garbage collections to come.

        Each generation would walk all of it once: a million keys hold everything up for 70 ms. It
        is too rare an event for what else is frozen with it to matter.
        """
        gc.freeze()


def _be_the_child(parent: int, work: Callable[[], None]) -> None:
    """Do the work and leave, whatever happens; never return into the parent's code."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            signal.set_wakeup_fd(-1)
            os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            os.nice(_NICENESS)
            _yield_the_disk()
            gc.disable()  # a collection would touch, and so copy, every page
            work()
            code = 0
    except BaseException as error:  # noqa: BLE001 - there is nobody above to raise to
        os.write(2, f"snapshot writer: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _yield_the_disk() -> None:
    """Let the log's syncs go first, where the disk's scheduler knows priorities; ask no more.

    A write waits for the log's sync, and nobody waits for a snapshot.
    """
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)


def _describe(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def write_records(store: SnapshotStore, header: SnapshotHeader, records: Iterable[bytes]) -> None:
    """Write and seal a snapshot file; blocking."""
    writer = store.begin(header)
    for record in records:
        writer.write(record)
    writer.seal()


class ReplacedStates:
    """Takes the states apart that a leader's snapshot has replaced, a slice at a time.

    It holds on to the state of every group, so that replacing one frees nothing yet: freeing a
    million keys at once would stall every request to this node. Between two slices the loop goes
    round, by way of a job.
    """

    def __init__(self, groups: dict[GroupId, Group], jobs: JobRunner) -> None:
        self._groups = groups
        self._jobs = jobs
        self._states: dict[GroupId, StateMachine] = {}
        self._slices: deque[Iterator[None]] = deque()
        self.check()

    def check(self) -> bool:
        """Look for states that are new; return whether one has replaced another."""
        replaced = False
        for name, group in self._groups.items():
            old = self._states.get(name)
            if old is not group.state:
                self._states[name] = group.state
                if old is not None:
                    self._slices.append(old.dismantle())
                    replaced = True
                    if len(self._slices) == 1:
                        self._soon()
        return replaced

    def _soon(self) -> None:
        self._jobs.run(_nothing, lambda _, __: self._free_some())

    def _free_some(self) -> None:
        if next(self._slices[0], _EXHAUSTED) is _EXHAUSTED:
            self._slices.popleft()
        if self._slices:
            self._soon()


_EXHAUSTED = object()


def _nothing() -> None:
    """A job that only takes a turn."""


class SnapshotKeeper:
    """Decides which group is written next: one at a time per node.

    Args:
        pinning: groups whose old entries keep log segments alive; they are written though idle.
    """

    def __init__(
        self,
        groups: dict[GroupId, Group],
        store: SnapshotStore,
        writer: SnapshotWriter,
        jobs: JobRunner,
        pinning: Callable[[], list[GroupId]],
    ) -> None:
        self.written = 0
        self.failed = 0
        self.finished: Callable[[Group, BaseException | None], None] = lambda _, __: None
        """Called when a snapshot is written, or could not be."""
        self._groups = groups
        self._store = store
        self._writer = writer
        self._jobs = jobs
        self._pinning = pinning
        self._busy = False
        self._turn = 0
        self._turns: dict[GroupId, int] = {}  # when each group was written last
        self._replaced = ReplacedStates(groups, jobs)

    def check(self) -> None:
        """Start a snapshot if one is due and none is being written; look after memory."""
        if self._replaced.check():
            self._writer.settle()
        if self._busy:
            return
        groups = self._groups.values()
        due = [group for group in groups if group.compaction.is_due(group.state.bytes_total)]
        # Under load the same groups are due every time: whose turn was longest ago goes first.
        group = min(due, key=lambda group: self._turns.get(group.id, 0), default=None)
        if group is None:
            pinned = (self._groups[name] for name in self._pinning() if name in self._groups)
            idle = (group for group in pinned if not group.compaction.release_log())
            group = next((group for group in idle if group.compaction.may_snapshot), None)
        if group is not None:
            self._start(group)

    def _start(self, group: Group) -> None:
        self._busy = True
        self._turn += 1
        self._turns[group.id] = self._turn
        index, term = group.compaction.snapshot_point()
        digest = group.state.digest.to_bytes(16, "big")
        header = SnapshotHeader(group=group.id, index=index, term=term, digest=digest)
        self._writer.write(header, group, lambda error: self._sealed(group, index, error))

    def _sealed(self, group: Group, index: int, error: BaseException | None) -> None:
        if error is not None:
            self._finished(group, index, error)
            return
        self._jobs.run(
            lambda: self._store.publish(group.id),
            lambda _, error: self._finished(group, index, error),
        )

    def _finished(self, group: Group, index: int, error: BaseException | None) -> None:
        self._busy = False
        if isinstance(error, SnapshotStale):
            return  # one from the leader has come meanwhile, and is newer
        if error is not None:
            self.failed += 1
            _logger.error("snapshot of group %s failed: %s", group.id, error)
            self.finished(group, error)
            return
        self.written += 1
        group.compaction.snapshot_written(index)
        _logger.info("snapshot of group %s at entry %d written", group.id, index)
        self.finished(group, None)
