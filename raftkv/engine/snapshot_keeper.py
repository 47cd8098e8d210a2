"""Writes snapshots beside everything else, and cuts the log after them.

The writer is a seam. In production it is a forked child: it sees the state as it was at the fork,
writes it with the other core, and the engine goes on at once. A simulation writes in turn.
"""

import ctypes
import gc
import logging
import mmap
import os
import platform
import signal
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from raftkv.core.cluster_map import GroupId
from raftkv.engine.jobs import JobRunner
from raftkv.engine.replica_table import FailedSnapshot, ReplicaRecord, ReplicaTable
from raftkv.engine.stalls import StallCounter
from raftkv.raft.group import Group
from raftkv.raft.snapshot_transfer import SnapshotId
from raftkv.rpc.process import close_from
from raftkv.storage.disk import DiskError
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

_COUNT = struct.Struct("<QH")  # records, then how many bytes of what went wrong
_REASON_BYTES_MAX = 500

PATIENCE_S = 60.0
"""A writer that has not written a record for this long is killed. One under load, with the lowest
of priorities, still writes some; a record is at most 64 KiB or one value."""

_LOOK_S = 0.02
"""How often somebody looks whether the writer has ended."""

_LAST_LOOKS = 50
"""How often after it was killed."""

_CHECKS_SKIPPED_MAX = 256

_logger = logging.getLogger(__name__)


class GroupSnapshots:
    """The snapshots of one group in the node's store (``raft.snapshot_transfer.SnapshotFiles``)."""

    def __init__(self, store: SnapshotStore, group: GroupId) -> None:
        self._store = store
        self._group = group

    def open(self) -> tuple[SnapshotId, SnapshotReader] | None:
        """Open the one that is in place."""
        reader = self._store.open_to_send(self._group)
        if reader is None:
            return None
        return SnapshotId(reader.header.index, reader.header.term, reader.size), reader

    def receive(self, snapshot: SnapshotId) -> SnapshotReceiver:
        """Begin to write one that a leader sends."""
        return self._store.receive(self._group, snapshot.size_bytes)


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


class Progress:
    """What a parent and its forked child share: written there, read here.

    The child says here what went wrong, as it may not log: standard error may take nothing.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, _COUNT.size + _REASON_BYTES_MAX)

    @property
    def count(self) -> int:
        """How many records there were."""
        return int(_COUNT.unpack_from(self._shared)[0])

    @property
    def reason(self) -> str:
        """What went wrong; empty if it was not said."""
        _, length = _COUNT.unpack_from(self._shared)
        return self._shared[_COUNT.size : _COUNT.size + length].decode(errors="replace")

    def counting(self, records: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the records and count them."""
        for number, record in enumerate(records, 1):
            yield record
            _COUNT.pack_into(self._shared, 0, number, 0)

    def fail(self, reason: str) -> None:
        """Say what went wrong."""
        said = reason.encode()[:_REASON_BYTES_MAX]
        self._shared[_COUNT.size : _COUNT.size + len(said)] = said
        _COUNT.pack_into(self._shared, 0, self.count, len(said))


class WriterStalledError(Exception):
    """A snapshot's writer wrote nothing for too long, and was killed."""


class ForkingWriter:
    """Writes in a forked child.

    The child closes every descriptor that it inherits: otherwise the node's sockets would live on
    in it when the node is killed, and peers would wait for a dead node. It asks to be killed with
    its parent for the same reason.

    A child may starve, hang on a disk, or on a lock that another thread held at the fork. It is
    killed when it writes nothing for ``patience_s``, and then lets go of its place also where it
    cannot end, as one that waits for a disk which does not answer.
    """

    def __init__(
        self, store: SnapshotStore, jobs: JobRunner, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._patience_s = patience_s
        self._unending: list[int] = []  # children that were killed and have not ended yet

    def write(
        self, header: SnapshotHeader, group: Group, done: Callable[[BaseException | None], None]
    ) -> None:
        """Fork; wait for the child on a thread."""
        self._unending = [pid for pid in self._unending if _status_of(pid) is None]
        parent = os.getpid()
        try:
            progress = Progress()
            pid = os.fork()
        except OSError as error:  # no memory, too many processes: later, perhaps
            done(error)
            return
        if pid == 0:
            records = progress.counting(group.state.snapshot_records())
            _be_the_child(parent, lambda: write_records(self._store, header, records), progress)

        def waited(status: Any, error: BaseException | None) -> None:
            if error is None and status != 0:
                ended = f"the snapshot writer ended with {_describe(status)}"
                error = OSError(": ".join(filter(None, (ended, progress.reason))))
            done(error)

        self._jobs.run(lambda: self._wait(header.group, pid, progress), waited)

    def _wait(self, group: GroupId, pid: int, progress: Progress) -> int:
        """Return the child's exit code; WriterStalledError if it had to be killed.

        A child that failed, or that somebody killed, leaves nothing on the disk.
        """
        patience = StallCounter(round(self._patience_s / _LOOK_S))
        while (status := _status_of(pid)) is None:
            if patience.is_over(progress.count):
                self._kill(group, pid)
                raise WriterStalledError(
                    f"the snapshot writer wrote nothing for {self._patience_s:g} s: killed"
                )
            time.sleep(_LOOK_S)
        if status != 0:
            self._store.discard(group)
        return status

    def _kill(self, group: GroupId, pid: int) -> None:
        """End the child, and remove what it wrote once it can write no more."""
        os.kill(pid, signal.SIGKILL)  # it is ours, and not waited for yet: nobody else's number
        for _ in range(_LAST_LOOKS):
            if _status_of(pid) is not None:
                self._store.discard(group)
                return
            time.sleep(_LOOK_S)
        self._unending.append(pid)

    def settle(self) -> None:
        """Leave the new state out of the garbage collections to come.

        Each generation would walk all of it once: a million keys hold everything up for 70 ms. It
        is too rare an event for what else is frozen with it to matter.
        """
        gc.freeze()


def _status_of(pid: int) -> int | None:
    """Return the exit code of a child that has ended, None if it has not; do not wait."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _be_the_child(parent: int, work: Callable[[], None], progress: Progress) -> None:
    """Do the work and leave, whatever happens; never return into the parent's code."""
    code = 1
    logging.disable()  # what writes the log, and who holds its lock, is not in this process
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            signal.set_wakeup_fd(-1)
            close_from(3)
            os.nice(_NICENESS)
            _yield_the_disk()
            gc.disable()  # a collection would touch, and so copy, every page
            work()
            code = 0
    except BaseException as error:  # noqa: BLE001 -- there is nobody above to raise to
        progress.fail(f"{type(error).__name__}: {error}")
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
    """Write and seal a snapshot file; blocking. One that fails leaves nothing on the disk."""
    writer = store.begin(header)
    try:
        for record in records:
            writer.write(record)
        writer.seal()
    except Exception:
        writer.abort()
        raise


class ReplacedStates:
    """Takes the states apart that a leader's snapshot has replaced, a slice at a time.

    It holds on to the state of every group, so that replacing one frees nothing yet: freeing a
    million keys at once would stall every request to this node. Between two slices the loop goes
    round, by way of a job.
    """

    def __init__(self, replicas: ReplicaTable, jobs: JobRunner) -> None:
        self._replicas = replicas
        self._jobs = jobs
        self._slices: deque[Iterator[None]] = deque()
        self.check()

    def check(self) -> bool:
        """Look for states that are new; return whether one has replaced another."""
        replaced = False
        for replica in self._replicas:
            old, state = replica.state_seen, replica.group.state
            if old is not state:
                replica.state_seen = state
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


def _is_due(replica: ReplicaRecord) -> bool:
    group = replica.group
    return group.compaction.is_due(group.state.bytes_total)


def _nothing() -> None:
    """A job that only takes a turn."""


class SnapshotKeeper:
    """Decides which group is written next: one at a time per node.

    One that fails is tried again at the next check, then after ever more of them: each try writes
    the whole state, perhaps onto a disk that has no room for it.

    Args:
        pinning: groups whose old entries keep log segments alive; they are written though idle.
    """

    def __init__(
        self,
        replicas: ReplicaTable,
        store: SnapshotStore,
        writer: SnapshotWriter,
        jobs: JobRunner,
        pinning: Callable[[], list[GroupId]],
    ) -> None:
        self.finished: Callable[[Group, BaseException | None], None] = lambda _, __: None
        """Called when a snapshot is written, or could not be."""
        self._replicas = replicas
        self._store = store
        self._writer = writer
        self._jobs = jobs
        self._pinning = pinning
        self._busy = False
        self._turn = 0
        self._checks = 0
        self._replaced = ReplacedStates(replicas, jobs)

    def check(self) -> None:
        """Start a snapshot if one is due and none is being written; look after memory.

        Call it every second.
        """
        self._checks += 1
        if self._replaced.check():
            self._writer.settle()
        if self._busy:
            return
        due = [replica for replica in self._replicas if self._may_try(replica) and _is_due(replica)]
        # Under load the same groups are due every time: whose turn was longest ago goes first.
        replica = min(due, key=lambda replica: replica.snapshot_turn, default=None)
        if replica is None:
            known = self._replicas.by_id
            pinned = (known[name] for name in self._pinning() if name in known)
            idle = (replica for replica in pinned if not replica.group.compaction.release_log())
            may = (replica for replica in idle if replica.group.compaction.may_snapshot)
            replica = next((replica for replica in may if self._may_try(replica)), None)
        if replica is not None:
            self._start(replica)

    def _may_try(self, replica: ReplicaRecord) -> bool:
        failed = replica.failed_snapshot
        return failed is None or self._checks >= failed.again_at

    def _start(self, replica: ReplicaRecord) -> None:
        self._busy = True
        self._turn += 1
        replica.snapshot_turn = self._turn
        group = replica.group
        index, term = group.compaction.snapshot_point()
        digest = group.state.digest.to_bytes(16, "big")
        header = SnapshotHeader(group=group.id, index=index, term=term, digest=digest)
        try:
            self._store.require_room(group.id, group.state.bytes_total)
        except DiskError as error:
            self._finished(replica, index, error)
            return
        self._writer.write(header, group, lambda error: self._sealed(replica, index, error))

    def _sealed(self, replica: ReplicaRecord, index: int, error: BaseException | None) -> None:
        if error is not None:
            self._finished(replica, index, error)
            return
        self._jobs.run(
            lambda: self._store.publish(replica.group.id),
            lambda _, error: self._finished(replica, index, error),
        )

    def _finished(self, replica: ReplicaRecord, index: int, error: BaseException | None) -> None:
        self._busy = False
        group = replica.group
        before, replica.failed_snapshot = replica.failed_snapshot, None
        if isinstance(error, SnapshotStale):
            return  # one from the leader has come meanwhile, and is newer
        if error is not None:
            times = 1 if before is None else before.times + 1
            skipped = min(2 ** (times - 1), _CHECKS_SKIPPED_MAX)
            replica.failed_snapshot = FailedSnapshot(times, self._checks + skipped)
            _logger.error("snapshot of group %s failed: %s", group.id, error)
            self.finished(group, error)
            return
        group.compaction.snapshot_written(index)
        _logger.info("snapshot of group %s at entry %d written", group.id, index)
        self.finished(group, None)
