"""A disk in memory that forgets at a power cut what a real one may forget, and no less.

What it keeps apart, and what a :meth:`SimDisk.crash` may do with it:

* Contents: each 512-byte sector of a file has a durable state and every state it was given since
  the last fdatasync. A crash leaves each sector in any one of them, independently of the others.
* Size: likewise.
* Names: a create, rename or unlink is pending until fsync_dir on its directory. A crash keeps any
  subset of the pending ones, each whole, in their order. Syncing a file says nothing about its
  name.
* A failed fdatasync: the page cache takes the pages for clean, so that the next fdatasync succeeds
  without having written them. (This is what Linux does, and why a failed one may not be retried.)

So :meth:`SimDisk.kill` (the process dies, the kernel lives) shows the next process everything that
was written, synced or not, and :meth:`SimDisk.crash` (the power fails) does not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from raftkv.storage.disk import (
    DiskError,
    DiskFull,
    FileExists,
    Locked,
    NoSuchFile,
)

SECTOR_BYTES = 512
"""What a disk writes whole or not at all."""

_BLANK = bytes(SECTOR_BYTES)

Choose = Callable[[int], int]
"""``choose(n)`` decides between n outcomes: 0 is the durable one, n - 1 the newest."""


class SimulatedCrash(BaseException):
    """The power is gone. Not an Exception, so that no error handling of the node survives it."""


@dataclass(slots=True)
class _Inode:
    """Contents of a file. A sector that is in no dictionary is blank."""

    number: int
    size: int = 0
    durable_size: int = 0
    allocated: int = 0
    current: dict[int, bytes] = field(default_factory=dict)
    durable: dict[int, bytes] = field(default_factory=dict)
    dirty: dict[int, list[bytes]] = field(default_factory=dict)  # states since the last sync
    unsaved: dict[int, list[bytes]] = field(default_factory=dict)  # of failed syncs: thought clean
    sizes: list[int] = field(default_factory=list)  # sizes since the last sync

    def states(self, sector: int) -> list[bytes]:
        """Every state in which a crash may leave this sector; the durable one first."""
        durable = self.durable.get(sector, _BLANK)
        return [durable, *self.unsaved.get(sector, ()), *self.dirty.get(sector, ())]

    def unsynced(self) -> list[int]:
        """Sectors with more than one possible state."""
        return sorted({*self.dirty, *self.unsaved})

    def sync(self) -> None:
        """Make what the page cache holds for dirty durable."""
        for sector in self.dirty:
            self.durable[sector] = self.current[sector]
            self.unsaved.pop(sector, None)
        self.dirty.clear()
        self.durable_size = self.size
        self.sizes.clear()

    def fail_sync(self) -> None:
        """Take dirty pages for clean without having written them."""
        for sector, states in self.dirty.items():
            self.unsaved.setdefault(sector, []).extend(states)
        self.dirty.clear()


@dataclass(frozen=True, slots=True)
class _Change:
    """A pending change of one directory: names removed and names (re)bound, all or none."""

    removed: tuple[Path, ...]
    bound: tuple[tuple[Path, "_Inode | None"], ...]  # None: a directory

    def apply(self, names: dict[Path, _Inode | None]) -> None:
        """Do it to a name table."""
        for path in self.removed:
            names.pop(path, None)
        names.update(self.bound)


@dataclass(slots=True)
class DiskFaults:
    """What is wrong with a disk, also in the next lives of its machine, and what came of it."""

    room_bytes: int | None = None
    """So much is left for us; what we give back others take, as on a disk that is shared."""
    checks: list[Callable[[str, Path], None]] = field(default_factory=list)
    """Called first in every operation; may raise a DiskError."""
    refused: int = 0
    """How often there was no room."""
    rotten: set[tuple[int, int]] = field(default_factory=set)
    """(file, bit) of bits that have rotted."""
    rot_read: int = 0
    """How often a rotten bit was read."""

    def note_read(self, inode: int, first: int, end: int) -> None:
        """Bytes of a file are read."""
        for number, bit in self.rotten:
            self.rot_read += number == inode and first * 8 <= bit < end * 8


class SimFile:
    """A :class:`raftkv.storage.disk.DiskFile` of a :class:`SimDisk`."""

    def __init__(self, disk: "SimDisk", path: Path, inode: _Inode, *, write: bool) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._write = write
        self._closed = False

    @property
    def path(self) -> Path:
        """The name under which it was opened."""
        return self._path

    def pread(self, length: int, offset: int) -> bytes:
        """Read what the page cache holds."""
        self._enter("pread")
        inode = self._inode
        end = min(offset + length, inode.size)
        if end <= offset:
            return b""
        if self._disk.faults.rotten:
            self._disk.faults.note_read(inode.number, offset, end)
        first, last = offset // SECTOR_BYTES, (end - 1) // SECTOR_BYTES
        data = b"".join([inode.current.get(s, _BLANK) for s in range(first, last + 1)])
        skip = offset - first * SECTOR_BYTES
        return data[skip : skip + end - offset]

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write into the page cache."""
        self._enter("pwrite", halt=False)
        inode = self._inode
        end = offset + len(data)
        self._disk.reserve(self._path, inode, end)
        for sector in range(offset // SECTOR_BYTES, (end + SECTOR_BYTES - 1) // SECTOR_BYTES):
            start = sector * SECTOR_BYTES
            low, high = max(offset, start), min(end, start + SECTOR_BYTES)
            old = inode.current.get(sector, _BLANK)
            new = old[: low - start] + bytes(data[low - offset : high - offset])
            new += old[high - start :]
            inode.current[sector] = new
            inode.dirty.setdefault(sector, []).append(new)
        self._grow(end)
        self._disk.halt_if_due()

    def allocate(self, size: int) -> None:
        """Reserve space; the file reads as zeros there."""
        self._enter("allocate", halt=False)
        self._disk.reserve(self._path, self._inode, size)
        self._grow(size)
        self._disk.halt_if_due()

    def fdatasync(self) -> None:
        """Make it durable, or lose it for good if a fault says so."""
        try:
            self._enter("fdatasync")
        except DiskError:
            self._inode.fail_sync()
            raise
        if "fdatasync" not in self._disk.lies:
            self._inode.sync()

    def size(self) -> int:
        """Length in bytes."""
        self._enter("size")
        return self._inode.size

    def close(self) -> None:
        """Nothing is synced; closing twice does nothing."""
        self._closed = True

    def _grow(self, size: int) -> None:
        if size > self._inode.size:
            self._inode.size = size
            self._inode.sizes.append(size)

    def _enter(self, operation: str, *, halt: bool = True) -> None:
        if self._closed:
            raise ValueError(f"{self._path}: {operation} on a closed file")
        if operation in ("pwrite", "allocate") and not self._write:
            raise DiskError(self._path, operation, "opened for reading")
        self._disk.enter(operation, self._path, halt=halt)


class SimLock:
    """A :class:`raftkv.storage.disk.DiskLock`."""

    def __init__(self, held: set[Path], path: Path) -> None:
        self._held = held
        self._path = path

    def release(self) -> None:
        """Unlock."""
        self._held.discard(self._path)


class SimDisk:
    """A :class:`raftkv.storage.disk.Disk` in memory.

    Faults are set as attributes:

    * ``before(operation, path)`` is called first in every operation and may raise a DiskError; one
      that it raises from ``fdatasync`` makes that sync fail as described above.
    * ``capacity_bytes``: allocating or writing beyond it is DiskFull.
    * ``lies``: names of operations (``fdatasync``, ``fsync_dir``) that report success and do
      nothing, like a disk that ignores flushes, or code that forgot to call them.
    * ``crash_at``: the power fails in the operation of that number (see ``operations``): a write,
      rename, create or unlink has then been done, but not synced; a sync has not been done.
      ``crashing()`` is called then.
    * ``faults``: more of them, which are handed on to the disk of the next life.
    """

    def __init__(self, *, capacity_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.before: Callable[[str, Path], None] | None = None
        self.crash_at: int | None = None
        self.crashing: Callable[[], None] = _do_nothing
        self.faults = DiskFaults()
        self.lies: frozenset[str] = frozenset()
        self.operations = 0
        """How many operations were begun."""
        self._crashed = False
        root = Path("/")
        self._names: dict[Path, _Inode | None] = {root: None}
        self._durable_names: dict[Path, _Inode | None] = {root: None}
        self._pending: list[tuple[Path, _Change]] = []  # with the directory
        self._locks: set[Path] = set()
        self._inodes = 0

    # --- the Disk protocol --------------------------------------------------------------------

    def create(self, path: Path) -> SimFile:
        """Create a new file."""
        self.enter("create", path, halt=False)
        self._require_directory(path.parent, path, "create")
        if path in self._names:
            raise FileExists(path, "create", "File exists")
        inode = self._new_inode()
        self._change(path.parent, _Change((), ((path, inode),)))
        return SimFile(self, path, inode, write=True)

    def open(self, path: Path, *, write: bool = False) -> SimFile:
        """Open an existing file."""
        self.enter("open", path)
        return SimFile(self, path, self._inode_at(path, "open"), write=write)

    def exists(self, path: Path) -> bool:
        """Whether the name exists now."""
        self.enter("exists", path)
        return path in self._names

    def listdir(self, directory: Path) -> list[str]:
        """Names in ``directory`` now, sorted."""
        self.enter("listdir", directory)
        self._require_directory(directory, directory, "list")
        return sorted(p.name for p in self._names if p.parent == directory and p != directory)

    def make_directory(self, path: Path) -> None:
        """Create one directory if it does not exist."""
        self.enter("make_directory", path, halt=False)
        self._require_directory(path.parent, path, "create")
        if path not in self._names:
            self._change(path.parent, _Change((), ((path, None),)))
        elif self._names[path] is not None:
            raise FileExists(path, "create", "File exists")

    def rename(self, old: Path, new: Path) -> None:
        """Rename within one directory."""
        if old.parent != new.parent:
            raise ValueError("rename within one directory only")
        self.enter("rename", new, halt=False)
        inode = self._inode_at(old, f"rename to {new.name}")
        self._change(old.parent, _Change((old,), ((new, inode),)))

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        self.enter("unlink", path, halt=False)
        self._inode_at(path, "remove")
        self._change(path.parent, _Change((path,), ()))

    def fsync_dir(self, directory: Path) -> None:
        """Make the names of ``directory`` durable."""
        self.enter("fsync_dir", directory)
        self._require_directory(directory, directory, "sync")
        if "fsync_dir" in self.lies:
            return
        for where, change in self._pending:
            if where == directory:
                change.apply(self._durable_names)
        self._pending = [pending for pending in self._pending if pending[0] != directory]

    def free_bytes(self, directory: Path) -> int:
        """Space left."""
        self.enter("free_bytes", directory)
        if self.faults.room_bytes is not None:
            return self.faults.room_bytes
        return 2**62 if self.capacity_bytes is None else self.capacity_bytes - self.used_bytes()

    def lock(self, path: Path) -> SimLock:
        """Lock ``path``; it is created if missing."""
        self.enter("lock", path)
        self._require_directory(path.parent, path, "lock")
        if path in self._locks:
            raise Locked(path, "lock", "held by another process")
        if path not in self._names:
            self._change(path.parent, _Change((), ((path, self._new_inode()),)))
        self._locks.add(path)
        return SimLock(self._locks, path)

    # --- crashes ------------------------------------------------------------------------------

    def kill(self) -> "SimDisk":
        """Return the disk as the next process finds it when this one was killed."""
        after = SimDisk(capacity_bytes=self.capacity_bytes)
        after._names = self._names
        after._durable_names = self._durable_names
        after._pending = self._pending
        after._inodes = self._inodes
        self._crashed = True  # the dead process writes nothing more
        return after

    def crash(self, random: Random) -> "SimDisk":
        """Return what one power cut may leave of the disk; this disk can no longer be used."""
        self._crashed = True
        return self.crash_choosing(random.randrange, random.randrange)

    def crash_choosing(self, sectors: Choose, names: Choose) -> "SimDisk":
        """Return what a crash at this moment would leave, every outcome decided by the caller.

        ``sectors`` is asked once for each unsynced sector, in the order of :meth:`unsynced`, and
        once for each size; ``names`` once for each pending change, with n = 2.

        The result shares nothing with this disk, so several outcomes of one crash can be tried.
        """
        after = SimDisk(capacity_bytes=self.capacity_bytes)
        names_left = dict(self._durable_names)
        for _, change in self._pending:
            if names(2):
                change.apply(names_left)
        left: dict[int, _Inode] = {}
        for inode in self._known_inodes():
            left[inode.number] = _after_crash(inode, sectors)
        for path, known in names_left.items():
            after._names[path] = None if known is None else left[known.number]
        # An entry of a directory that did not survive cannot be reached.
        after._names = {p: i for p, i in after._names.items() if _reachable(p, names_left)}
        after._durable_names = dict(after._names)
        after._inodes = self._inodes
        return after

    def unsynced(self) -> list[tuple[Path, int]]:
        """Sectors whose state a crash would decide, as (file, sector)."""
        names = {inode.number: path for path, inode in self._every_name() if inode is not None}
        return [
            (names[inode.number], sector)
            for inode in self._known_inodes()
            for sector in inode.unsynced()
        ]

    def files(self) -> list[Path]:
        """Every file that has a name now, sorted."""
        return sorted(path for path, inode in self._names.items() if inode is not None)

    def size_of(self, path: Path) -> int:
        """Length of a file in bytes, without an operation."""
        return self._inode_at(path, "look at").size

    def used_bytes(self) -> int:
        """Space that all files together take, without an operation."""
        return sum(inode.allocated for inode in self._names.values() if inode is not None)

    def written_sectors(self, path: Path) -> list[int]:
        """The sectors of a file that are not blank, sorted."""
        inode = self._inode_at(path, "look at")
        last = inode.size // SECTOR_BYTES
        return sorted(s for s, data in inode.current.items() if s < last and any(data))

    def pending_names(self) -> int:
        """How many changes of names a crash would decide about."""
        return len(self._pending)

    def flip_bit(self, path: Path, bit: int) -> None:
        """Let one bit of a file rot, in the page cache and on the disk."""
        inode = self._names.get(path)
        if inode is None or not 0 <= bit < inode.size * 8:
            raise ValueError(f"{path} has no bit {bit}")
        sector, rest = divmod(bit, SECTOR_BYTES * 8)
        for states in (inode.current, inode.durable):
            rotten = bytearray(states.get(sector, _BLANK))
            rotten[rest // 8] ^= 1 << rest % 8
            states[sector] = bytes(rotten)
        self.faults.rotten ^= {(inode.number, bit)}

    def shear(self, path: Path, sector: int, kept: int) -> None:
        """Let a sector be written by half: ``kept`` bytes, and zeros as before it was written."""
        whole = self.sector(path, sector)
        self.set_sector(path, sector, whole[:kept] + bytes(SECTOR_BYTES - kept))

    def sector(self, path: Path, sector: int) -> bytes:
        """What a sector of a file holds now, without an operation."""
        return self._inode_at(path, "look at").current.get(sector, _BLANK)

    def set_sector(self, path: Path, sector: int, data: bytes) -> None:
        """Let a sector hold something else, in the page cache and on the disk."""
        inode = self._inode_at(path, "change")
        inode.current[sector] = inode.durable[sector] = data

    # --- for the files ------------------------------------------------------------------------

    def enter(self, operation: str, path: Path, *, halt: bool = True) -> None:
        """Begin an operation: count it, let faults happen; ``halt``: crash before it is done."""
        if self._crashed:
            raise SimulatedCrash
        self.operations += 1
        if self.before is not None:
            self.before(operation, path)
        for check in self.faults.checks:
            check(operation, path)
        if halt:
            self.halt_if_due()

    def halt_if_due(self) -> None:
        """Cut the power if this is the operation to do it in."""
        if self.crash_at is not None and self.operations >= self.crash_at:
            self._crashed = True
            self.crashing()
            raise SimulatedCrash

    def reserve(self, path: Path, inode: _Inode, size: int) -> None:
        """Give the file space up to ``size`` or raise DiskFull."""
        more = size - inode.allocated
        if more <= 0:
            return
        room_bytes = self.faults.room_bytes
        if self.capacity_bytes is not None and self.used_bytes() + more > self.capacity_bytes:
            self.faults.refused += 1
            raise DiskFull(path, "allocate", "No space left on device")
        if room_bytes is not None:
            if more > room_bytes:
                self.faults.refused += 1
                raise DiskFull(path, "allocate", "No space left on device")
            self.faults.room_bytes = room_bytes - more
        inode.allocated = size

    def _new_inode(self) -> _Inode:
        self._inodes += 1
        return _Inode(self._inodes)

    def _inode_at(self, path: Path, action: str) -> _Inode:
        if path not in self._names:
            raise NoSuchFile(path, action, "No such file or directory")
        inode = self._names[path]
        if inode is None:
            raise DiskError(path, action, "Is a directory")
        return inode

    def _require_directory(self, directory: Path, path: Path, action: str) -> None:
        if directory not in self._names:
            raise NoSuchFile(path, action, "No such file or directory")
        if self._names[directory] is not None:
            raise DiskError(path, action, "Not a directory")

    def _change(self, directory: Path, change: _Change) -> None:
        change.apply(self._names)
        self._pending.append((directory, change))
        self.halt_if_due()

    def _every_name(self) -> Sequence[tuple[Path, _Inode | None]]:
        pending = [binding for _, change in self._pending for binding in change.bound]
        return [*self._durable_names.items(), *pending, *self._names.items()]

    def _known_inodes(self) -> list[_Inode]:
        """Every file that has a name now or may have one after a crash, oldest first."""
        found = {inode.number: inode for _, inode in self._every_name() if inode is not None}
        return [found[number] for number in sorted(found)]


def _do_nothing() -> None:
    """Nobody wants to know."""


def _after_crash(inode: _Inode, choose: Choose) -> _Inode:
    """Return a copy of what one crash leaves of a file."""
    left = dict(inode.durable)
    for sector in inode.unsynced():
        states = inode.states(sector)
        left[sector] = states[choose(len(states))]
    sizes = [inode.durable_size, *inode.sizes]
    size = sizes[choose(len(sizes))] if inode.sizes else inode.durable_size
    left = {sector: state for sector, state in left.items() if sector * SECTOR_BYTES < size}
    return _Inode(inode.number, size, size, max(size, 0), current=dict(left), durable=left)


def _reachable(path: Path, names: dict[Path, _Inode | None]) -> bool:
    return all(parent in names for parent in path.parents)
