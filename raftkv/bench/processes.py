"""What the kernel knows of a node's processes: read from /proc, without asking the node."""

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

WORKER = "raftkv.web.worker"
"""In the command line of an HTTP worker, and of nothing else."""

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_UTIME, _STIME, _CUTIME, _CSTIME = 11, 12, 13, 14
"""Places in /proc/PID/stat, counted from the field after the name."""

_WATCH_S = 0.02


def children_of(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that still live."""
    children: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in (_PROC / str(pid) / "task").iterdir():
            # A thread may end between the two steps.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children += map(int, (task / "children").read_text().split())
    return children


def descendants_of(pid: int) -> list[int]:
    """The children of ``pid``, their children, and so on."""
    found = []
    for child in children_of(pid):
        found += [child, *descendants_of(child)]
    return found


def command_of(pid: int) -> tuple[str, ...]:
    """The command line of a process; empty if it is gone."""
    try:
        raw = (_PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(part.decode(errors="replace") for part in raw.split(b"\0")[:-1])


def workers_of(engine: int) -> list[int]:
    """The HTTP workers of an engine; its other children write snapshots, and end soon."""
    return [pid for pid in descendants_of(engine) if WORKER in command_of(pid)]


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of its children that have ended."""
    stat = (_PROC / str(pid) / "stat").read_text()
    fields = stat.rpartition(")")[2].split()  # the name may hold anything, even spaces
    ticks = sum(int(fields[place]) for place in (_UTIME, _STIME, _CUTIME, _CSTIME))
    return ticks / _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Resident memory of one process."""
    return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE_BYTES


def peak_resident_bytes(pid: int) -> int:
    """The most resident memory that the process ever had, or since :func:`reset_peak`."""
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no VmHWM")


def reset_peak(pid: int) -> None:
    """Have :func:`peak_resident_bytes` count from now on (proc(5), clear_refs)."""
    (_PROC / str(pid) / "clear_refs").write_text("5")


class ForkWatch:
    """Notes when a process has a forked copy of itself at work: a snapshot being written.

    Such a child is told from others, which have been started with a command of their own, by its
    command line. The intervals are exact to about 20 ms.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = set(pids)
        self._since: dict[tuple[int, int], float] = {}
        self._done: list[tuple[int, float, float]] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()  # guards what is watched and what was found
        self._thread = threading.Thread(target=self._run, name="fork-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def watch(self, pids: Iterable[int]) -> None:
        """Watch these from now on."""
        with self._lock:
            self._pids = set(pids)

    def intervals(self) -> list[tuple[int, float, float]]:
        """(pid of the parent, begun, ended) of each child, in monotonic seconds; also running."""
        now = time.monotonic()
        with self._lock:
            running = [(parent, begun, now) for (parent, _), begun in self._since.items()]
            return sorted([*self._done, *running], key=lambda interval: interval[1])

    def _run(self) -> None:
        while not self._stop.wait(_WATCH_S):
            with self._lock:
                self._look()

    def _look(self) -> None:
        now = time.monotonic()
        found = set()
        for pid in self._pids:
            command = command_of(pid)
            for child in children_of(pid):
                if command and command_of(child) == command:
                    found.add((pid, child))
                    self._since.setdefault((pid, child), now - _WATCH_S)
        for gone in self._since.keys() - found:
            self._done.append((gone[0], self._since.pop(gone), now))
