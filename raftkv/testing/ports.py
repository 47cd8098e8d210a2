"""Ports that stay free until they are used.

Asking the kernel for a free port and using it later is a race: the port is from the range that
outgoing connections take theirs from, and another test run may be told the same. So ports come
from below that range, and a lock file keeps other runs on this machine away from them.
"""

import contextlib
import fcntl
import os
import random
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOWEST = 10_240
_EPHEMERAL_DEFAULT = 32_768
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class PortReservation:
    """Free ports, kept from other users of this class until :meth:`release`."""

    def __init__(self, count: int) -> None:
        self._directory = _own_directory()
        self._locks: list[int] = []
        self.ports: tuple[int, ...] = ()
        taken: list[int] = []
        for port in _candidates():
            if len(taken) == count:
                break
            if self._lock(port):
                taken.append(port)
        self.ports = tuple(taken)
        if len(taken) < count:
            self.release()
            raise OSError(f"only {len(taken)} of {count} ports are free")

    def _lock(self, port: int) -> bool:
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._directory / str(port), flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        if not is_free(port):
            os.close(descriptor)
            return False
        self._locks.append(descriptor)
        return True

    def release(self) -> None:
        """Give the ports up. The lock files stay: removing one that is being locked is a race."""
        for descriptor in self._locks:
            os.close(descriptor)
        self._locks.clear()


def _own_directory() -> Path:
    """Return the directory of the lock files, which is this user's and nobody else's to write.

    Its name is known to everybody who may write to the system's temporary directory, so it may be
    a stranger's, or a symbolic link to where a stranger may not write but this user may.

    Raises:
        OSError: It is; the message says which and what to do.
    """
    directory = Path(tempfile.gettempdir(), f"raftkv-ports-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not ours or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{directory} is not a directory that only this user writes: remove it")
    return directory


def _candidates() -> Iterator[int]:
    first_ephemeral = _EPHEMERAL_DEFAULT
    with contextlib.suppress(OSError, ValueError):
        first_ephemeral = int(_RANGE_FILE.read_text().split()[0])
    ports = list(range(LOWEST, max(first_ephemeral, LOWEST + 1000)))
    random.shuffle(ports)
    yield from ports
