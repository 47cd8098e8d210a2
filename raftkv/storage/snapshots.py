"""Snapshot files: one per group, replaced as a whole and never by an older one.

A snapshot is written under a temporary name, synced, renamed and its directory synced; so under
its final name there is always one complete snapshot or none. Its checksum is checked before
anything of it is used (H5, H6): a reader iterates records, a sender reads the same file in chunks,
a receiver writes such chunks and ends with the same checks as a reader. A received one takes the
old one's place only after a state was built from it (see :class:`SnapshotReceiver`).

Every call blocks and belongs into a worker thread (or, for :class:`SnapshotWriter` up to
``seal``, into a forked child). One writer and one receiver per group may be at work at a time;
the caller sees to that.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final

import msgspec

from raftkv.core.cluster_map import GroupId
from raftkv.core.errors import StartError
from raftkv.storage.disk import Disk, DiskError, DiskFile, DiskFull, Exhausted, NoSuchFile

FORMAT: Final = 1
MAGIC: Final = b"raftkvSN"
RECORD_BYTES_MAX: Final = 64 * 2**20
"""A longer record is a mistake of the writer; the bound keeps a reader's memory in check."""

_PREFIX: Final = struct.Struct("<8sII")  # magic, format, length of the encoded header
_CRC: Final = struct.Struct("<I")
_LENGTH: Final = struct.Struct("<I")
_TRAILER: Final = struct.Struct("<IQI")  # END, number of records, CRC of everything before it
_END: Final = 0xFFFF_FFFF
_HEADER_BYTES_MAX: Final = 64 * 1024
_BLOCK: Final = 2**20
_SYNC_BYTES: Final = 2**20
"""Sync after so many bytes: one huge sync at the end would hold up the log's syncs behind it."""

OPEN_MAX: Final = 8
"""So many snapshots are open to be sent, and so many to be received, at any time: a node has a
thousand groups and fewer descriptors, and a follower may need a snapshot of each."""

_SUFFIX: Final = ".snap"
_WRITING: Final = ".writing"
_RECEIVING: Final = ".receiving"


class SnapshotDamaged(StartError):  # noqa: N818 -- says what the file is
    """The file is not a whole snapshot; nothing of it may be used."""

    def __init__(self, file: Path, offset: int, reason: str) -> None:
        self.file = file
        self.offset = offset
        self.reason = reason
        super().__init__(f"{file}: snapshot damaged at byte {offset}: {reason}")


class SnapshotStale(Exception):  # noqa: N818 -- says what the new snapshot is
    """The group has a snapshot that is as new or newer; the new one was dropped."""

    def __init__(self, file: Path, offered: int, present: int) -> None:
        self.is_present = offered == present
        super().__init__(f"{file}: snapshot at index {offered} dropped, one at {present} is here")


class SnapshotBusy(Exception):  # noqa: N818 -- says what the store is
    """So many snapshots are being read or received already that this one has to wait."""


class SnapshotHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a snapshot is of: every entry of ``group`` up to ``index``, which has ``term``.

    ``digest``: of the state, so that a receiver can check what it built.
    """

    group: GroupId
    index: int
    term: int
    digest: bytes = b""


_header_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(SnapshotHeader)


class SnapshotWriter:
    """Writes one snapshot; nothing is visible to others before :meth:`commit`."""

    def __init__(
        self, store: "SnapshotStore", disk: Disk, path: Path, header: SnapshotHeader
    ) -> None:
        self.header = header
        self._store = store
        self._disk = disk
        self._path = path
        self._file = _create_anew(disk, path)
        self._offset = 0
        self._synced = 0
        self._crc = 0
        self._records = 0
        self._pending = bytearray()
        encoded = _header_encoder.encode(header)
        prefix = _PREFIX.pack(MAGIC, FORMAT, len(encoded)) + encoded
        self._pending += prefix + _CRC.pack(zlib.crc32(prefix))

    def write(self, record: bytes) -> None:
        """Add one record."""
        if len(record) > RECORD_BYTES_MAX:
            raise ValueError(f"snapshot record of {len(record)} bytes")
        self._pending += _LENGTH.pack(len(record))
        self._pending += record
        self._records += 1
        if len(self._pending) >= _BLOCK:
            self._flush()

    def seal(self) -> None:
        """End and sync the file, without giving it its name.

        A forked child ends here; its parent then calls :meth:`SnapshotStore.publish`, which must
        not run in two processes at once.
        """
        self._flush()
        tail = _TRAILER.pack(_END, self._records, 0)[: -_CRC.size]
        self._pending += tail + _CRC.pack(zlib.crc32(tail, self._crc))
        self._flush()
        self._file.fdatasync()
        self._file.close()

    def commit(self) -> None:
        """Make this the group's snapshot, durably; SnapshotStale if it is older than that one."""
        try:
            self.seal()
        except DiskError:
            self.abort()
            raise
        self._store.publish(self.header.group)

    def abort(self) -> None:
        """Throw away what was written."""
        self._file.close()
        with suppress(DiskError):  # a leftover is removed at the next start
            self._disk.unlink(self._path)

    def _flush(self) -> None:
        self._file.pwrite(self._pending, self._offset)
        self._offset += len(self._pending)
        self._crc = zlib.crc32(self._pending, self._crc)
        self._pending = bytearray()
        if self._offset >= self._synced + _SYNC_BYTES:
            self._file.fdatasync()
            self._synced = self._offset


class SnapshotReader:
    """An open snapshot. It stays readable when a newer one takes its place."""

    def __init__(
        self, file: DiskFile, path: Path, closed: Callable[[], None] = lambda: None
    ) -> None:
        self._file = file
        self._path = path
        self._closed = closed
        self.size = file.size()
        self.header, self._start = _read_header(file, path)

    def verify(self) -> None:
        """Read the whole file and raise SnapshotDamaged unless every check holds."""
        for _ in self._walk():
            pass

    def records(self) -> Iterator[bytes]:
        """Return the records; raises SnapshotDamaged at the latest after the last one.

        So what was built from the records counts only once the iterator has ended by itself.
        """
        return self._walk()

    def read_chunk(self, offset: int, length: int) -> bytes:
        """Bytes of the file as they are, for sending; shorter only at the end."""
        return self._file.pread(length, offset)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._closed()

    def _walk(self) -> Iterator[bytes]:
        """Yield records, check the trailer. One block and one record in memory."""
        source = _Source(self._file, self._path, self.size)
        source.take(self._start)
        records = 0
        while True:
            at = source.position
            (length,) = _LENGTH.unpack(source.take(_LENGTH.size))
            if length == _END:
                break
            if length > RECORD_BYTES_MAX:
                raise SnapshotDamaged(self._path, at, f"record of {length} bytes")
            yield source.take(length)
            records += 1
        (count,) = struct.unpack("<Q", source.take(8))
        crc = source.crc
        (expected,) = _CRC.unpack(source.take(_CRC.size))
        if crc != expected:
            raise SnapshotDamaged(self._path, source.position, "checksum mismatch")
        if count != records or source.position != self.size:
            raise SnapshotDamaged(self._path, source.position, "it does not end where it should")


class SnapshotReceiver:
    """Takes the bytes of another node's snapshot file, in order.

    :meth:`seal` checks that the bytes are what the other node wrote, not that a state can be made
    of them. So the file keeps its temporary name, and the group its old snapshot, until
    :meth:`publish`: whoever receives builds the state from :meth:`records` before that. Once
    sealed, it is ended by ``publish`` or ``abort``.
    """

    def __init__(
        self,
        store: "SnapshotStore",
        disk: Disk,
        path: Path,
        group: GroupId,
        closed: Callable[[], None],
    ) -> None:
        self.received = 0
        """How many bytes are here; the offset that comes next."""
        self._closed = closed
        self._store = store
        self._disk = disk
        self._path = path
        self._group = group
        self._synced = 0
        self._file = _create_anew(disk, path)

    def write(self, offset: int, data: bytes) -> None:
        """Add ``data``; ``offset`` must be ``received``."""
        if offset != self.received:
            raise ValueError(f"snapshot chunk at {offset}, expected {self.received}")
        self._file.pwrite(data, offset)
        self.received += len(data)
        if self.received >= self._synced + _SYNC_BYTES:
            self._file.fdatasync()
            self._synced = self.received

    def seal(self) -> SnapshotHeader:
        """Check and sync the file, without giving it its name.

        Raises SnapshotDamaged or DiskError, and it is gone.
        """
        try:
            header = self._checked_header()
            self._file.fdatasync()
        except (SnapshotDamaged, DiskError):
            self.abort()
            raise
        return header

    def records(self) -> Iterator[bytes]:
        """Return the records; see :meth:`SnapshotReader.records`."""
        return SnapshotReader(self._file, self._path).records()

    def publish(self) -> None:
        """Make it the group's snapshot, durably (H6).

        Raises SnapshotStale or DiskError; then the one that was here still is, unless only the
        last step failed, the sync of the directory: then this one may be.
        """
        self._file.close()
        self._closed()
        self._store.publish(self._group, received=True)

    def _checked_header(self) -> SnapshotHeader:
        reader = SnapshotReader(self._file, self._path)
        if reader.header.group != self._group:
            reason = f"it is of group {reader.header.group}, not {self._group}"
            raise SnapshotDamaged(self._path, 0, reason)
        reader.verify()
        return reader.header

    def abort(self) -> None:
        """Throw away what was received."""
        self._file.close()
        self._closed()
        with suppress(DiskError):  # a leftover is removed at the next start
            self._disk.unlink(self._path)


class SnapshotStore:
    """The snapshots of one node.

    ``_publishing`` guards the step from "is it newer?" to the rename, so that a writer and a
    receiver that end together cannot put the older one last. ``_sending`` and ``_receiving`` bound
    how many are open.
    """

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._directory = directory
        self._publishing = Lock()
        self._sending = _Places(OPEN_MAX)
        self._receiving = _Places(OPEN_MAX)
        self._unsynced: set[Path] = set()  # in place, and no sync was tried
        for name in disk.listdir(directory):
            if name.endswith((_SUFFIX + _WRITING, _SUFFIX + _RECEIVING)):
                disk.unlink(directory / name)
        # A rename may be visible here that a crash of the machine could still undo.
        disk.fsync_dir(directory)

    def begin(self, header: SnapshotHeader) -> SnapshotWriter:
        """Start to write a snapshot; an unfinished one of the same group is thrown away."""
        path = self.path(header.group)
        return SnapshotWriter(self, self._disk, path.with_name(path.name + _WRITING), header)

    def discard(self, group: GroupId) -> None:
        """Remove what a writer that is no more has left of a snapshot."""
        path = self.path(group)
        with suppress(DiskError):  # there may be none; what stays goes at the next start
            self._disk.unlink(path.with_name(path.name + _WRITING))

    def receive(self, group: GroupId, size_bytes: int = 0) -> SnapshotReceiver:
        """Start to receive a snapshot; an unfinished one of the same group is thrown away.

        Raises:
            SnapshotBusy: ``OPEN_MAX`` are being received.
            DiskFull: there is no room for one of ``size_bytes``.
        """
        self.require_room(group, size_bytes)
        path = self.path(group)
        path = path.with_name(path.name + _RECEIVING)
        leave = self._receiving.enter()
        try:
            return SnapshotReceiver(self, self._disk, path, group, leave)
        except BaseException:
            leave()
            raise

    def require_room(self, group: GroupId, size_bytes: int) -> None:
        """Raise DiskFull unless a snapshot of that size fits: trying takes room from the log."""
        free_bytes = self._disk.free_bytes(self._directory)
        if free_bytes < size_bytes:
            reason = f"{free_bytes} bytes are free and a snapshot has {size_bytes}"
            raise DiskFull(self.path(group), "write", reason)

    def open(self, group: GroupId) -> SnapshotReader | None:
        """Open the group's snapshot, None if it has none; only the header is checked yet."""
        return self._open(self.path(group))

    def open_to_send(self, group: GroupId) -> SnapshotReader | None:
        """Open like :meth:`open`; SnapshotBusy if ``OPEN_MAX`` opened so are not closed yet."""
        leave = self._sending.enter()
        try:
            reader = self._open(self.path(group), leave)
        except BaseException:
            leave()
            raise
        if reader is None:
            leave()
        return reader

    def header(self, group: GroupId) -> SnapshotHeader | None:
        """Header of the group's snapshot, None if it has none."""
        return self._header_at(self.path(group))

    def path(self, group: GroupId) -> Path:
        """Where the group's snapshot is, or would be."""
        return self._directory / f"group-{group.shard}-{group.generation}{_SUFFIX}"

    def groups(self) -> list[GroupId]:
        """Which groups have a snapshot."""
        found = (_group_of(name) for name in self._disk.listdir(self._directory))
        return sorted(group for group in found if group is not None)

    def publish(self, group: GroupId, *, received: bool = False) -> None:
        """Give a sealed snapshot its name.

        Raises SnapshotStale unless it is newer than the one in place, SnapshotDamaged or
        DiskError. Then nothing of it is left, unless only the last step failed, the sync of the
        directory.
        """
        path = self.path(group)
        sealed = path.with_name(path.name + (_RECEIVING if received else _WRITING))
        with self._publishing:
            try:
                self._require_newer(sealed, path)
                self._disk.rename(sealed, path)
            except (SnapshotStale, SnapshotDamaged, DiskError) as error:
                with suppress(DiskError):  # a leftover is removed at the next start
                    self._disk.unlink(sealed)
                is_present = isinstance(error, SnapshotStale) and error.is_present
                if not (is_present and path in self._unsynced):
                    raise
            self._sync_name(path)

    def _sync_name(self, path: Path) -> None:
        """Make a rename durable, if need be when the same snapshot comes again.

        That is right only where no sync was tried, for want of a descriptor: one that failed may
        have lost the name, and the next one succeeds all the same.
        """
        try:
            self._disk.fsync_dir(self._directory)
        except Exhausted:
            self._unsynced.add(path)
            raise
        except DiskError:
            self._unsynced.clear()  # it may have lost their names as well
            raise
        self._unsynced.clear()

    def _require_newer(self, sealed: Path, path: Path) -> None:
        new, old = self._header_at(sealed), self._header_at(path)
        if new is None:
            raise NoSuchFile(sealed, "publish", "no sealed snapshot")
        if old is not None and (new.index, new.term) <= (old.index, old.term):
            raise SnapshotStale(path, new.index, old.index)

    def _header_at(self, path: Path) -> SnapshotHeader | None:
        reader = self._open(path)
        if reader is None:
            return None
        reader.close()
        return reader.header

    def _open(self, path: Path, closed: Callable[[], None] = lambda: None) -> SnapshotReader | None:
        try:
            file = self._disk.open(path)
        except NoSuchFile:
            return None
        try:
            return SnapshotReader(file, path, closed)
        except BaseException:
            file.close()
            raise


class _Places:
    """A bounded number of places. The lock guards who has one: files are closed on any thread."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = Lock()
        self._taken: set[object] = set()

    def enter(self) -> Callable[[], None]:
        """Take a place; return how to leave it, once or more often. SnapshotBusy: none is free."""
        with self._lock:
            if len(self._taken) >= self._count:
                raise SnapshotBusy(f"{self._count} snapshots are open")
            place = object()
            self._taken.add(place)

        def leave() -> None:
            with self._lock:
                self._taken.discard(place)

        return leave


class _Source:
    """Reads a file forwards in blocks and keeps the CRC of what was taken."""

    def __init__(self, file: DiskFile, path: Path, size: int) -> None:
        self.position = 0
        self.crc = 0
        self._file = file
        self._path = path
        self._size = size
        self._block = b""
        self._used = 0

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes; SnapshotDamaged if the file ends before."""
        if self.position + length > self._size:
            raise SnapshotDamaged(self._path, self.position, "the file ends too early")
        if self._used + length > len(self._block):
            ahead = self._block[self._used :]
            start = self.position + len(ahead)
            self._block = ahead + self._file.pread(max(_BLOCK, length), start)
            self._used = 0
        data = self._block[self._used : self._used + length]
        self._used += length
        self.position += length
        self.crc = zlib.crc32(data, self.crc)
        return data


def _read_header(file: DiskFile, path: Path) -> tuple[SnapshotHeader, int]:
    """Return the header and where the records begin."""
    prefix = file.pread(_PREFIX.size, 0)
    if len(prefix) < _PREFIX.size:
        raise SnapshotDamaged(path, 0, f"{len(prefix)} bytes are too few for a snapshot")
    magic, form, length = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise SnapshotDamaged(path, 0, "this is not a raftkv snapshot")
    if form != FORMAT:
        reason = f"format {form} is unknown to this version (it knows {FORMAT})"
        raise SnapshotDamaged(path, 0, reason)
    if length > _HEADER_BYTES_MAX:
        raise SnapshotDamaged(path, 0, f"header of {length} bytes")
    rest = file.pread(length + _CRC.size, _PREFIX.size)
    encoded, crc = rest[:length], rest[length:]
    if crc != _CRC.pack(zlib.crc32(prefix + encoded)):
        raise SnapshotDamaged(path, 0, "header checksum mismatch")
    try:
        return _header_decoder.decode(encoded), _PREFIX.size + length + _CRC.size
    except msgspec.DecodeError as error:
        raise SnapshotDamaged(path, _PREFIX.size, f"header is malformed: {error}") from error


def _create_anew(disk: Disk, path: Path) -> DiskFile:
    with suppress(NoSuchFile):
        disk.unlink(path)
    return disk.create(path)


def _group_of(name: str) -> GroupId | None:
    """Group of a snapshot's file name, None for any other name."""
    parts = name.removesuffix(_SUFFIX).split("-")
    if not name.endswith(_SUFFIX) or len(parts) != 3 or parts[0] != "group":  # noqa: PLR2004 -- group-shard-generation
        return None
    try:
        return GroupId(int(parts[1]), int(parts[2]))
    except ValueError:
        return None
