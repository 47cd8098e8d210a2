"""The node's write-ahead log: one for all Raft groups, one fdatasync for all that waits.

What one write and one fdatasync covers is a *unit*. Unit N+1 is written only after unit N is
synced; each carries its sequence number and, in its checksum, the checksum of the one before. So
after a crash only the last unit can be bad, and only then may it be cut (see ``wal_recovery``).

Segments are never reused: a new file is all zeros, so whatever is not zero behind the last unit
was written by an unfinished unit. Recovery zeroes it, and syncs that, before the next unit goes
there; remains of an old unit can therefore never be taken for part of a new one.

Thread rules. A :class:`Wal` belongs to the event loop: all its methods are called there, and none
of them but ``create``, ``open`` and ``close`` touches the disk. The ``run`` of a job does nothing
else and is called in a worker thread; it shares no mutable state with the Wal, so one sync job and
one housekeeping job may run at the same time. Back on the loop the job is handed to its
``finish_...`` method. If ``run`` raises, nothing is known about what is on disk: the node must
stop. The Wal then never hands out another sync job.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from raftkv.core.cluster_map import GroupId
from raftkv.storage.disk import Disk, DiskError, DiskFile, Exhausted, NoSuchFile
from raftkv.storage.wal_format import (
    CARRY,
    RECORD,
    SEGMENT_HEADER,
    UNIT_HEADER,
    UNIT_HEADER_SPACE,
    Kind,
    WalDamaged,
    encode_segment_header,
    encode_unit,
    segment_marker,
    segment_name,
    segment_number,
    written_end,
)
from raftkv.storage.wal_recovery import (
    RecoveredGroup,
    ReplayedGroup,
    Scan,
    Scanner,
    Segment,
    Span,
    forget_from,
)

__all__ = ["SEGMENT_BYTES", "HousekeepingJob", "RecoveredGroup", "SyncJob", "Wal", "WalDamaged"]

SEGMENT_BYTES: Final = 64 * 2**20
"""Large enough that rolling is rare, small enough that idle nodes waste little."""

_SEGMENT_BYTES_MIN: Final = 4096
_TEMPORARY: Final = ".tmp"

_logger = logging.getLogger(__name__)


class _Group:
    """What the buffered records say about a group, and what the sealed ones say (``sealed``)."""

    __slots__ = ("compacted_index", "compacted_term", "last", "sealed", "term", "vote")

    def __init__(self, replayed: ReplayedGroup | None = None) -> None:
        self.term = 0
        self.vote: str | None = None
        self.compacted_index = 0
        self.compacted_term = 0
        self.last = 0
        if replayed is not None:
            self.term, self.vote, self.compacted_index, self.compacted_term, self.last = (
                replayed.carried()
            )
        self.sealed: tuple[int, str | None, int, int, int] | None = None
        if replayed is not None:
            self.seal()

    def seal(self) -> None:
        """Everything buffered so far has gone into a unit."""
        self.sealed = (
            self.term, self.vote, self.compacted_index, self.compacted_term, self.last,
        )  # fmt: skip


class _Effects:
    """What a unit's records mean for keeping and deleting segments, once they are durable."""

    __slots__ = ("compacted", "tails", "touched", "truncated")

    def __init__(self) -> None:
        self.tails: dict[GroupId, int] = {}  # last index, for groups with entries in the unit
        self.truncated: list[tuple[GroupId, int]] = []
        self.compacted: dict[GroupId, int] = {}
        self.touched: set[GroupId] = set()  # groups whose state changed otherwise


class SyncJob:
    """Writes and syncs one unit. Everything it needs is its own; see the thread rules above.

    ``lsn`` is durable when ``run`` has returned.
    """

    def __init__(
        self,
        *,
        lsn: int,
        segment: Segment,
        sequence: int,
        before: int,
        parts: list[bytes],
        size: int,
        effects: _Effects,
        create: Callable[[int], DiskFile],
    ) -> None:
        self.lsn = lsn
        self.segment = segment
        self.sequence = sequence
        self.end = segment.end_with(size)
        self.effects = effects
        self.unit_crc: int | None = None  # set when the unit is durable
        self.full: Exhausted | None = None
        """No room for the unit, and nothing of it was written: run the job again later."""
        self._before = before
        self._parts = parts
        self._create = create

    def run(self) -> None:
        """Write and sync, blocking. Raises DiskError, after which the node must stop.

        If there is no room to write to, ``full`` says so instead: unlike after a failed write or
        sync, what is on disk is known then.
        """
        self.full = None
        try:
            file = self._allocated()
        except Exhausted as error:
            self.full = error
            return
        segment = self.segment
        unit, crc = encode_unit(
            segment.marker, self.sequence, self._before, self._parts, segment.alignment
        )
        file.pwrite(unit, segment.end)
        file.fdatasync()
        self._parts = []
        self.unit_crc = crc

    def _allocated(self) -> DiskFile:
        """Return the segment's file, with blocks for all of the unit."""
        segment = self.segment
        if segment.file is None:
            # The spare could not be allocated in time: this is the last chance to get one.
            segment.file = self._create(max(segment.size, self.end))
            segment.size = max(segment.size, self.end)
        elif self.end > segment.size:
            segment.file.allocate(self.end)
            segment.size = self.end
        return segment.file


class HousekeepingJob:
    """Deletes segments that nobody needs and allocates the spare."""

    def __init__(
        self, disk: Disk, obsolete: list[Segment], spare: Segment | None, identity: str
    ) -> None:
        self.obsolete = obsolete
        self.spare = spare
        self.full: Exhausted | None = None
        self.deleted = 0
        self.done = False
        self._disk = disk
        self._identity = identity

    def run(self) -> None:
        """Delete, then allocate; blocking. Want of room is noted, any other DiskError raised."""
        try:
            self._delete()
            if self.spare is not None:
                self.spare.file = _allocate_segment(
                    self._disk, self.spare.path, self.spare.number, self.spare.size, self._identity
                )
        except Exhausted as error:
            self.full = error
        self.done = True

    def _delete(self) -> None:
        """Oldest first, each durable before the next: a crash must not leave a gap in the log."""
        for segment in self.obsolete:
            with suppress(NoSuchFile):  # the job before got so far, and no further
                self._disk.unlink(segment.path)
            self._disk.fsync_dir(segment.path.parent)
            self.deleted += 1


class Wal:
    """The log. Make one with :meth:`open`; see the module for which thread may call what.

    Records are buffered by :meth:`append`, :meth:`truncate_from`, :meth:`set_hard_state` and
    :meth:`compact`. These never fail because of the disk and do no I/O; each returns the LSN that
    covers it: it is durable once ``durable_lsn`` has got there. LSNs count the records buffered by
    this object; they start again at 0 with each :meth:`open`.

    A call that contradicts the log (a gap between entries, a term that goes back) raises
    ValueError and buffers nothing: written down, it would make the whole log unreadable.
    """

    def __init__(
        self, disk: Disk, directory: Path, identity: str, segment_bytes: int, scan: Scan
    ) -> None:
        self.lsn = 0
        self.durable_lsn = 0
        self._disk = disk
        self._directory = directory
        self._identity = identity
        self.segment_bytes = segment_bytes
        """Size of a new segment."""
        self._groups = {name: _Group(group) for name, group in scan.groups.items()}
        self._compacted = {name: group.compacted_index for name, group in scan.groups.items()}
        """Durable compaction marks; those still buffered must not delete anything."""
        self._closed = scan.segments[: scan.position]
        self._active = scan.segments[scan.position]
        self._spares = scan.segments[scan.position + 1 :]
        self._sequence = scan.sequence
        self._crc = scan.crc
        self._sync: SyncJob | None = None
        self._housekeeping: HousekeepingJob | None = None
        self._full = False
        self._parts: list[bytes] = [UNIT_HEADER_SPACE]
        self._bytes = 0
        self._effects = _Effects()

    # --- making, opening, closing -------------------------------------------------------------

    @classmethod
    def create(
        cls, disk: Disk, directory: Path, *, identity: str, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """Make an empty log, as part of making the data directory.

        Apart from :meth:`open`, so that a log that has vanished is not taken for a new one: a
        replica that forgets what it promised loses acknowledged writes (H19).
        """
        disk.make_directory(directory)
        for name in disk.listdir(directory):
            if segment_number(name) is not None:
                _refuse_used(disk, directory / name)
                disk.unlink(directory / name)
        path = directory / segment_name(1)
        _allocate_segment(disk, path, 1, _checked_size(segment_bytes), identity).close()

    @classmethod
    def open(
        cls, disk: Disk, directory: Path, *, identity: str, segment_bytes: int = SEGMENT_BYTES
    ) -> tuple["Wal", dict[GroupId, RecoveredGroup]]:
        """Recover the log; blocking.

        Everything that is returned is durable, whatever the previous process had or had not
        synced. Raises WalDamaged, having changed nothing, or DiskError.
        """
        scan = Scanner(disk, directory, identity).scan()
        wal = cls(disk, directory, identity, _checked_size(segment_bytes), scan)
        wal._mend(scan)
        recovered = {
            name: RecoveredGroup(
                group.term, group.vote, (group.compacted_index, group.compacted_term), group.entries
            )
            for name, group in scan.groups.items()
        }
        return wal, recovered

    def close(self) -> None:
        """Close the files. What was not synced is not saved; no job may be running."""
        for segment in (self._active, *self._spares):
            if segment.file is not None:
                segment.file.close()
                segment.file = None

    def _mend(self, scan: Scan) -> None:
        """Make the disk hold exactly what was recovered, and hold it durably."""
        for name in self._disk.listdir(self._directory):
            if name.endswith(_TEMPORARY) and segment_number(name.removesuffix(_TEMPORARY)):
                self._disk.unlink(self._directory / name)
        for segment in (self._active, *self._spares):
            segment.file = self._disk.open(segment.path, write=True)
        if scan.cut is not None:
            _logger.warning(
                "%s: unit %d at byte %d was not finished before the crash, cut %d bytes: %s",
                scan.cut.segment.path,
                scan.cut_sequence,
                scan.cut.start,
                scan.cut.end - scan.cut.start,
                scan.cut_reason,
            )
            _overwrite_with_zeros(scan.cut)
        if scan.last_unit is not None:
            _write_again(scan.last_unit)
        # A segment's rename, or a deletion, may have been seen here without being durable.
        self._disk.fsync_dir(self._directory)
        if not self._spares and (job := self.begin_housekeeping()) is not None:
            job.run()
            self.finish_housekeeping(job)

    # --- records ------------------------------------------------------------------------------

    def append(self, group: GroupId, index: int, term: int, payload: bytes) -> int:
        """Buffer entry ``index``, which must follow the group's last."""
        state = self._groups.get(group) or self._new_group(group)
        if index != state.last + 1:
            raise ValueError(f"group {group}: entry {index} after entry {state.last}")
        state.last = index
        parts = self._parts
        parts.append(RECORD.pack(Kind.APPEND, group[0], group[1], index, term, len(payload)))
        parts.append(payload)
        self._bytes += len(payload) + RECORD.size
        self._effects.tails[group] = index
        self.lsn += 1
        return self.lsn

    def truncate_from(self, group: GroupId, index: int) -> int:
        """Buffer that ``index`` and everything after it is gone; nothing if there is nothing."""
        state = self._groups.get(group) or self._new_group(group)
        if index <= state.compacted_index:
            raise ValueError(f"group {group}: entry {index} is compacted, it cannot be truncated")
        if index > state.last:
            return self.lsn
        state.last = index - 1
        effects = self._effects
        effects.truncated.append((group, index))
        if group in effects.tails:
            effects.tails[group] = state.last
        return self._record(Kind.TRUNCATE, group, index, 0)

    def set_hard_state(self, group: GroupId, term: int, vote: str | None) -> int:
        """Buffer the group's term and vote; nothing if they are what they were."""
        state = self._groups.get(group) or self._new_group(group)
        if term < state.term:
            raise ValueError(f"group {group}: term {term} after term {state.term}")
        if (term, vote) == (state.term, state.vote):
            return self.lsn
        state.term, state.vote = term, vote
        body = b"" if vote is None else vote.encode()
        return self._record(Kind.HARD_STATE, group, term, vote is not None, body)

    def compact(self, group: GroupId, index: int, term: int) -> int:
        """Buffer that a durable snapshot covers everything up to ``index``; older is ignored.

        Entries after ``index`` stay. Those that contradict the snapshot must be truncated first.
        An ``index`` beyond the last entry empties the log; the next entry is then index + 1.
        """
        state = self._groups.get(group) or self._new_group(group)
        if index <= state.compacted_index:
            return self.lsn
        state.compacted_index, state.compacted_term = index, term
        state.last = max(state.last, index)
        self._effects.compacted[group] = index
        return self._record(Kind.COMPACT, group, index, term)

    def _record(self, kind: int, group: GroupId, first: int, second: int, body: bytes = b"") -> int:
        record = RECORD.pack(kind, group[0], group[1], first, second, len(body)) + body
        self._parts.append(record)
        self._bytes += len(record)
        self._effects.touched.add(group)
        self.lsn += 1
        return self.lsn

    def _new_group(self, name: GroupId) -> _Group:
        group = self._groups[name] = _Group()
        return group

    # --- syncing ------------------------------------------------------------------------------

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait for the next sync job."""
        return self._bytes

    def begin_sync(self) -> SyncJob | None:
        """Seal what is buffered into one unit and return the job that makes it durable.

        None: nothing is buffered, a sync job is out, or the unit needs the segment that a running
        housekeeping job is about to deliver. So ask again after finish_sync and after
        finish_housekeeping.
        """
        if self._sync is not None or not self._bytes:
            return None
        segment = self._segment_for(UNIT_HEADER.size + self._bytes)
        if segment is None:
            return None
        size = UNIT_HEADER.size + self._bytes
        if segment.empty:
            start = self._segment_start()
            self._parts[1:1] = start
            size += sum(map(len, start))
        job = SyncJob(
            lsn=self.lsn,
            segment=segment,
            sequence=self._sequence + 1,
            before=self._crc,
            parts=self._parts,
            size=size,
            effects=self._effects,
            create=lambda bytes_: _allocate_segment(
                self._disk, segment.path, segment.number, bytes_, self._identity
            ),
        )
        for name in self._effects.touched.union(self._effects.tails):
            self._groups[name].seal()
        self._parts, self._bytes, self._effects = [UNIT_HEADER_SPACE], 0, _Effects()
        self._sync = job
        return job

    def sync_found_no_room(self, job: SyncJob) -> None:
        """Hear that ``job.full`` was set. The job stays out; it is to be run again now and then."""
        if job is not self._sync or job.full is None:
            raise RuntimeError("takes the sync job that is out and found no room")
        self._note_full(job.full)

    def finish_sync(self, job: SyncJob) -> None:
        """Take back a job whose ``run`` has returned; its LSN is durable from here on."""
        if job is not self._sync or job.unit_crc is None:
            raise RuntimeError("finish_sync takes the sync job that is out, after it has run")
        self._sync = None
        self._sequence, self._crc = job.sequence, job.unit_crc
        if job.segment is not self._active:
            self._roll_to(job.segment)
        self._active.end = job.end
        for name, index in job.effects.truncated:
            forget_from([*self._closed, self._active], name, index)
        self._active.tails.update(job.effects.tails)
        self._compacted.update(job.effects.compacted)
        self.durable_lsn = job.lsn

    def _segment_for(self, size: int) -> Segment | None:
        """Where a unit of ``size`` bytes goes; None if that segment is being made just now."""
        active = self._active
        if active.empty or active.end_with(size) <= active.size:
            return active
        if self._spares:
            return self._spares[0]
        if self._housekeeping is not None and self._housekeeping.spare is not None:
            return None
        return self._new_segment(active.number + 1)

    def _segment_start(self) -> list[bytes]:
        """First records of a segment: every group as of the unit before.

        They let all older segments be deleted, and let recovery see if one was deleted too early.
        """
        carries = []
        for name, group in self._groups.items():
            if group.sealed is None:
                continue
            term, vote, compacted_index, compacted_term, last = group.sealed
            body = CARRY.pack(compacted_index, compacted_term, last, vote is not None)
            body += b"" if vote is None else vote.encode()
            carries.append(RECORD.pack(Kind.CARRY, *name, term, 0, len(body)) + body)
        return [RECORD.pack(Kind.SEGMENT_START, 0, 0, len(carries), 0, 0), *carries]

    def _roll_to(self, segment: Segment) -> None:
        if self._active.file is not None:
            self._active.file.close()
            self._active.file = None
        self._closed.append(self._active)
        self._active = segment
        if self._spares and self._spares[0] is segment:
            del self._spares[0]

    # --- segments -----------------------------------------------------------------------------

    def has_space(self) -> bool:
        """False while the next segment cannot be made: refuse new proposals.

        The disk has no room for it, or this process no descriptor.

        What is left of the active segment is for hard states, no-ops and what is in flight. It
        heals when a later housekeeping job gets its segment.
        """
        return not self._full

    def begin_housekeeping(self) -> HousekeepingJob | None:
        """Return a job if a segment can be deleted or the spare is missing, else None.

        Cheap enough to ask after every finish_sync; while ``has_space()`` is False ask about once
        a second. None also while a housekeeping job is out.
        """
        if self._housekeeping is not None:
            return None
        spare = self._missing_spare()
        obsolete = self._obsolete()
        if spare is None and not obsolete:
            return None
        job = HousekeepingJob(self._disk, obsolete, spare, self._identity)
        self._housekeeping = job
        return job

    def finish_housekeeping(self, job: HousekeepingJob) -> None:
        """Take back a job whose ``run`` has returned."""
        if job is not self._housekeeping or not job.done:
            raise RuntimeError("finish_housekeeping takes the job that is out, after it has run")
        self._housekeeping = None
        del self._closed[: job.deleted]
        if job.spare is not None and job.spare.file is not None:
            self._spares.append(job.spare)
        if job.full is not None:
            self._note_full(job.full)
        elif job.spare is not None:
            if self._full:
                _logger.warning("%s: room for the next log segment again", self._directory)
            self._full = False

    @property
    def room_bytes(self) -> int:
        """Bytes that can still be recorded without asking the disk for more space."""
        segment, end = self._active, self._active.end
        if self._sync is not None:
            segment, end = self._sync.segment, self._sync.end
        rest = max(0, segment.size - end) if segment.file is not None else 0
        spares = sum(spare.size for spare in self._spares if spare is not segment)
        return max(0, rest + spares - self._bytes)

    def _note_full(self, error: Exhausted) -> None:
        if not self._full:
            _logger.warning("no room for the next log segment, refusing writes: %s", error)
        self._full = True

    def pinning(self, keep_segments: int = 2) -> list[GroupId]:
        """Groups to snapshot and compact so that all but the newest segments can be deleted."""
        old = self._closed[: max(0, len(self._closed) + 1 - keep_segments)]
        return sorted(
            {
                name
                for segment in old
                for name, last in segment.tails.items()
                if last > self._groups[name].compacted_index
            }
        )

    @property
    def bytes_on_disk(self) -> int:
        """Space that the log's files take, the spare included."""
        return sum(s.size for s in (*self._closed, self._active, *self._spares))

    def _missing_spare(self) -> Segment | None:
        """Return the segment to allocate, None if there is a spare."""
        in_use = self._sync.segment if self._sync is not None else self._active
        if in_use is not self._active and in_use not in self._spares:
            # The sync job is making this one itself. If that fails, a segment with the number
            # after it would look as if this one had been lost.
            return None
        if any(segment is not in_use for segment in self._spares):
            return None
        return self._new_segment(in_use.number + 1)

    def _obsolete(self) -> list[Segment]:
        """Oldest segments that no group needs; never one behind a segment that stays."""
        obsolete = []
        for segment in self._closed:
            if any(last > self._compacted.get(g, 0) for g, last in segment.tails.items()):
                break
            obsolete.append(segment)
        return obsolete

    def _new_segment(self, number: int) -> Segment:
        return Segment(
            number,
            self._directory / segment_name(number),
            self.segment_bytes,
            segment_marker(self._identity, number),
        )


def _checked_size(segment_bytes: int) -> int:
    if segment_bytes < _SEGMENT_BYTES_MIN:
        raise ValueError(f"segments need at least {_SEGMENT_BYTES_MIN} bytes: {segment_bytes}")
    return segment_bytes


def _allocate_segment(disk: Disk, path: Path, number: int, size: int, identity: str) -> DiskFile:
    """Make a segment that is whole whenever it can be seen under its name, and return it open."""
    temporary = path.with_name(path.name + _TEMPORARY)
    if disk.exists(temporary):
        disk.unlink(temporary)
    file = disk.create(temporary)
    try:
        file.allocate(size)
        file.pwrite(encode_segment_header(number, identity), 0)
        file.fdatasync()
        disk.rename(temporary, path)
        disk.fsync_dir(path.parent)
    except DiskError:
        file.close()
        with suppress(DiskError):  # the first error is the one to report
            disk.unlink(temporary)
        raise
    return file


def _refuse_used(disk: Disk, path: Path) -> None:
    """Refuse to make a log where there is one; an unused segment is left of an earlier attempt."""
    file = disk.open(path)
    try:
        data = file.pread(file.size(), 0)
    finally:
        file.close()
    if written_end(data, SEGMENT_HEADER.size) > SEGMENT_HEADER.size:
        raise WalDamaged(path, 0, "a log is here already, but no identity that owns it")


def _overwrite_with_zeros(span: Span) -> None:
    file = span.segment.file
    if file is not None:
        file.pwrite(bytes(span.end - span.start), span.start)
        file.fdatasync()


def _write_again(span: Span) -> None:
    """Make the last unit durable, of which nobody knows whether it is.

    Reading it back proves nothing: it may sit in the page cache only. Nor does a sync alone: after
    a failed one the kernel takes the page for clean, and the next sync succeeds without writing.
    """
    file = span.segment.file
    if file is not None:
        file.pwrite(file.pread(span.end - span.start, span.start), span.start)
        file.fdatasync()
