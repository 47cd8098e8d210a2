"""What a process of a node does about itself: its descriptors, and the memory that it takes."""

import contextlib
import ctypes
import functools
import os
import resource
import sys
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CLOSE_RANGE = 436
"""Number of the system call, the same everywhere (Linux 5.9)."""
_UINT_MAX = 2**32 - 1
_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def raise_file_limit() -> None:
    """Take all the descriptors that this process may have: links, logs and connections need them.

    The soft limit is often 1,024, for the sake of programs that use select().
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed; call it before anything else.

    Otherwise the next file or socket gets its number, and is written to as a standard stream.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        os.set_inheritable(number, True)  # noqa: FBT003 -- the standard library's own order
        setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 -- to stay


def close_from(lowest: int) -> None:
    """Close every descriptor from ``lowest`` on, however many there may be.

    ``os.closerange`` tries each number up to the limit, perhaps a billion, where the kernel
    cannot do it at once.
    """
    libc = ctypes.CDLL(None)
    if libc.syscall(_CLOSE_RANGE, ctypes.c_uint(lowest), ctypes.c_uint(_UINT_MAX), 0) == 0:
        return
    with contextlib.suppress(OSError):
        os.close(lowest)  # the list takes a descriptor, and there may be none
    for path in Path("/proc/self/fd").iterdir():
        if (number := int(path.name)) >= lowest:
            with contextlib.suppress(OSError):  # that of the list is closed already
                os.close(number)


def resident_bytes() -> int:
    """Return the resident memory of this process, from the kernel."""
    return int(os.pread(_statm(), 128, 0).split()[1]) * _PAGE_BYTES


@functools.cache
def _statm() -> int:
    """Opened once: also a process that has no descriptor left reports how it is."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
