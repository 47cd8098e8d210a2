"""The file with a node's process id, locked as long as the node lives.

The lock, not the number, says whether the node runs: a number outlives a killed process and the
kernel gives it to another one some day. It is a POSIX record lock, which is not inherited by
children (a snapshot writer must not keep a dead node's file locked) and tells who holds it.
"""

import contextlib
import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from raftkv.core.errors import StartError

# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("hhqqi4x")


class PidFileError(StartError):
    """The file cannot be had; one line for the operator."""


class PidFile:
    """Held while the node runs; removed by a clean end, left behind by a kill."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise PidFileError(f"node.pid_file: {self._path}: {error.strerror}") from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = _read(self._path)
            os.close(descriptor)
            raise PidFileError(
                f"node.pid_file: {self._path}: the node runs already, as process {pid}"
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:  # without the number nobody could tell which process to stop
            os.close(descriptor)
            raise PidFileError(f"node.pid_file: {self._path}: {error.strerror}") from error
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Removed while still locked, so that no other node's file is removed.
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        if self._descriptor is not None:
            os.close(self._descriptor)


def _read(path: Path) -> str:
    return path.read_text(errors="replace").strip() or "unknown"


def holder(path: Path) -> int | None:
    """The process that holds the file now; None if the node does not run."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else int(pid)
