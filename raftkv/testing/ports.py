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
        directory = Path(tempfile.gettempdir(), f"raftkv-ports-{os.getuid()}")
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(directory / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
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


def _candidates() -> Iterator[int]:
    first_ephemeral = _EPHEMERAL_DEFAULT
    with contextlib.suppress(OSError, ValueError):
        first_ephemeral = int(_RANGE_FILE.read_text().split()[0])
    ports = list(range(LOWEST, max(first_ephemeral, LOWEST + 1000)))
    random.shuffle(ports)
    yield from ports
