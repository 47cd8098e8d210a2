"""The disk seam: everything in raftkv that touches a file goes through :class:`Disk`.

The calls are the ones whose durability matters (positioned writes, fdatasync, fsync of a
directory, rename), so that a simulated disk can forget exactly what a real one may forget at a
power cut. All of them block; the caller decides which thread pays for that.

Two rules that callers rely on and every implementation keeps:

* what was written is durable only after ``fdatasync`` on that file returned;
* a name that was created, renamed or unlinked is durable only after ``fsync_dir`` on its
  directory returned, whatever was synced of the file's contents.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from raftkv.core.errors import StartError


class DiskError(StartError):
    """The disk did not do what it was asked; the message is one line that names the file."""

    def __init__(self, path: Path, action: str, reason: str) -> None:
        self.path = path
        self.action = action
        self.reason = reason
        super().__init__(f"{path}: cannot {action}: {reason}")


class Exhausted(DiskError):  # noqa: N818 -- named for the condition, which is expected and heals
    """Nothing was done, for want of something that others may give back."""


class DiskFull(Exhausted):
    """No space (or quota) left; nothing else is wrong with the disk."""


class TooManyFiles(Exhausted):
    """No file descriptor left, of this process or of the machine."""


class NoSuchFile(DiskError):  # noqa: N818 -- named for the condition
    """The file or directory does not exist."""


class FileExists(DiskError):  # noqa: N818 -- named for the condition
    """The file or directory exists already."""


class Locked(DiskError):  # noqa: N818 -- named for the condition
    """Another process holds the lock; ``reason`` says which if that is known."""


class DiskFile(Protocol):
    """An open file. Calls on different files may run in different threads at once."""

    @property
    def path(self) -> Path:
        """The name under which it was opened; it may have been renamed since."""
        ...

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes; fewer only at the end of the file."""
        ...

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of ``data`` or raise."""
        ...

    def allocate(self, size: int) -> None:
        """Reserve blocks so that writes below ``size`` need no more space; new bytes are zero."""
        ...

    def fdatasync(self) -> None:
        """Make the contents and the size durable. After a failure nothing may be assumed."""
        ...

    def size(self) -> int:
        """Length in bytes."""
        ...

    def close(self) -> None:
        """Give the file back; syncs nothing."""
        ...


class DiskLock(Protocol):
    """A held lock; it also ends with the process, however that dies."""

    def release(self) -> None:
        """Let others have it."""
        ...


class Disk(Protocol):
    """A file system."""

    def create(self, path: Path) -> DiskFile:
        """Create a new file for reading and writing; it must not exist."""
        ...

    def open(self, path: Path, *, write: bool = False) -> DiskFile:
        """Open an existing file."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether a file or directory has this name."""
        ...

    def listdir(self, directory: Path) -> list[str]:
        """Names in ``directory``, sorted."""
        ...

    def make_directory(self, path: Path) -> None:
        """Create one directory; its parent must exist, it may exist itself."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Rename within one directory, replacing ``new`` at once if it exists."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a name; files open under it stay readable."""
        ...

    def fsync_dir(self, directory: Path) -> None:
        """Make the names in ``directory`` durable."""
        ...

    def free_bytes(self, directory: Path) -> int:
        """Space left for this process on the file system of ``directory``."""
        ...

    def lock(self, path: Path) -> DiskLock:
        """Take an exclusive lock on the file ``path`` (created if missing) or raise Locked."""
        ...


@contextmanager
def _translated(path: Path, action: str) -> Iterator[None]:
    """Turn an OSError into the typed one-line error of this module."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(path, action, reason) from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise TooManyFiles(path, action, reason) from error
        if error.errno == errno.ENOENT:
            raise NoSuchFile(path, action, reason) from error
        if error.errno == errno.EEXIST:
            raise FileExists(path, action, reason) from error
        raise DiskError(path, action, reason) from error


class RealFile:
    """A :class:`DiskFile` over a file descriptor."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @property
    def path(self) -> Path:
        """The name under which it was opened."""
        return self._path

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes; the kernel may return less at a time, so ask again."""
        with _translated(self._path, "read"):
            data = os.pread(self._descriptor, length, offset)
            if len(data) in (0, length):
                return data
            parts = [data]
            while data and (length := length - len(data)) > 0:
                offset += len(data)
                data = os.pread(self._descriptor, length, offset)
                parts.append(data)
            return b"".join(parts)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of ``data``; a short write is continued, as POSIX allows it to happen."""
        with _translated(self._path, "write"):
            written = os.pwrite(self._descriptor, data, offset)
            if written == len(data):
                return
            rest = memoryview(data)
            while written < len(rest):
                written += os.pwrite(self._descriptor, rest[written:], offset + written)

    def allocate(self, size: int) -> None:
        """Reserve blocks up to ``size``."""
        with _translated(self._path, "allocate"):
            os.posix_fallocate(self._descriptor, 0, size)

    def fdatasync(self) -> None:
        """Sync contents and size."""
        with _translated(self._path, "sync"):
            os.fdatasync(self._descriptor)

    def size(self) -> int:
        """Length in bytes."""
        with _translated(self._path, "stat"):
            return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Close the descriptor; closing twice does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with _translated(self._path, "close"):
                os.close(descriptor)


class RealLock:
    """A :class:`DiskLock` by flock.

    A forked child shares the lock with its parent and would keep it alive after the parent's
    death, so that the node could not be restarted while its snapshot child still runs: hence the
    child drops its copy of the descriptor at once. It must not *unlock*, which would unlock the
    parent.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.register_at_fork(after_in_child=self._close)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def release(self) -> None:
        """Unlock; doing it twice does nothing."""
        self._close()


class RealDisk:
    """The operating system's file system."""

    def create(self, path: Path) -> RealFile:
        """Create a new file, readable by its owner only: values are nobody else's business."""
        with _translated(path, "create"):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return RealFile(path, os.open(path, flags, 0o600))

    def open(self, path: Path, *, write: bool = False) -> RealFile:
        """Open an existing file."""
        with _translated(path, "open"):
            flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
            return RealFile(path, os.open(path, flags))

    def exists(self, path: Path) -> bool:
        """Whether the name exists; a directory that may not be looked into is an error."""
        with _translated(path, "look up"):
            return path.exists()

    def listdir(self, directory: Path) -> list[str]:
        """Names in ``directory``, sorted."""
        with _translated(directory, "list"):
            return sorted(entry.name for entry in directory.iterdir())

    def make_directory(self, path: Path) -> None:
        """Create one directory if it does not exist."""
        with _translated(path, "create"):
            path.mkdir(mode=0o700, exist_ok=True)

    def rename(self, old: Path, new: Path) -> None:
        """Rename within one directory."""
        with _translated(old, f"rename to {new.name}"):
            old.replace(new)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        with _translated(path, "remove"):
            path.unlink()

    def fsync_dir(self, directory: Path) -> None:
        """Sync the names of ``directory``."""
        with _translated(directory, "sync"):
            try:
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except PermissionError:
                os.sync()  # it may be entered but not read, such as the parent of a data directory
                return
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def free_bytes(self, directory: Path) -> int:
        """Space left for an unprivileged process."""
        with _translated(directory, "stat"):
            facts = os.statvfs(directory)
            return facts.f_bavail * facts.f_frsize

    def lock(self, path: Path) -> RealLock:
        """Lock ``path`` and leave our process id in it, for the message that the next one gets."""
        with _translated(path, "lock"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with _translated(path, "lock"):
                _flock(path, descriptor)
                os.ftruncate(descriptor, 0)
                # On a full disk the lock still holds; only the message would lack the process id.
                with suppress(OSError):
                    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return RealLock(descriptor)


def _flock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).strip().decode("ascii", "replace")
        by = f"process {holder}" if holder else "another process"
        raise Locked(path, "lock", f"held by {by}") from error
