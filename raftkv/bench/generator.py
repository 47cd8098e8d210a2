"""What all load generators have in common: the load that they are given, and how they report.

A generator is a process that reads a :class:`Load` from standard input, makes it, and writes now
and then a :class:`Progress` and in the end a :class:`~raftkv.bench.tally.Tally` (all MessagePack,
the latter two behind their length), so that clients do not share an interpreter with each other.
"""

import array
import gc
import math
import resource
import sys
import time
from typing import Literal

import msgspec

from raftkv.bench.tally import Tally, Window, is_accepted
from raftkv.bench.workload import Workload

Carrier = Literal["http", "client", "kazoo"]
"""What makes the requests: :mod:`raftkv.bench.http_load`, our Python client
(:mod:`raftkv.bench.client_load`), or ZooKeeper's (:mod:`raftkv.bench.kazoo_load`)."""

MODULES: dict[Carrier, str] = {
    "http": "raftkv.bench.http_load",
    "client": "raftkv.bench.client_load",
    "kazoo": "raftkv.bench.kazoo_load",
}
EXAMPLES_KEPT = 5
LENGTH_BYTES = 4
REPORT_EVERY_S = 0.25


class Load(msgspec.Struct, frozen=True):
    """What to send. Without ``rate`` the loop is closed: each connection sends when answered."""

    addresses: tuple[tuple[str, int], ...]
    connections: int
    """Requests under way at most. They take turns at the addresses, also if there are fewer
    connections than addresses: then the requests do."""
    seconds: float
    rate: float | None = None
    """Requests a second; over HTTP only."""
    workload: Workload = Workload(value_bytes=16)
    dialect: str = "raftkv"
    warmup_s: float = 0.0
    """Load before the measured time that is not counted."""
    seed: int = 1
    start_at: float = 0.0
    """When the measured time begins, by the monotonic clock, which all processes of a machine
    share; 0: as soon as possible."""
    carrier: Carrier = "http"

    def begin(self) -> float:
        """When the measured time begins."""
        return self.start_at or time.monotonic() + self.warmup_s


class Progress(msgspec.Struct, tag="progress"):
    """How far a load is."""

    answered: int = 0
    failed: int = 0
    """Refused, broken, not sent or answered with something else than success."""


class Recorder:
    """Puts outcomes into the seconds of the measured time; what began before that is not kept."""

    def __init__(self, load: Load, begin: float) -> None:
        self.begin = begin
        self.progress = Progress()
        seconds = max(1, math.ceil(load.seconds))
        self._statuses: list[dict[str, int]] = [{} for _ in range(seconds)]
        self._accepted = [array.array("f") for _ in range(seconds)]

    def note(self, status: str, intended: float, latency_s: float) -> bool:
        """Count one outcome; say whether it belongs to the measured time."""
        accepted = is_accepted(status)
        self.progress.answered += 1
        if not accepted:
            self.progress.failed += 1
        if intended < self.begin:
            return False
        second = min(len(self._statuses) - 1, int(intended - self.begin))
        statuses = self._statuses[second]
        statuses[status] = statuses.get(status, 0) + 1
        if accepted:
            self._accepted[second].append(latency_s)
        return True

    def windows(self) -> list[Window]:
        """What was counted."""
        return [
            Window(statuses, latencies.tobytes())
            for statuses, latencies in zip(self._statuses, self._accepted, strict=True)
        ]


def cpu_s() -> float:
    """Processor time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def raise_file_limit() -> None:
    """Take all the descriptors that this process may have: every connection needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def read_load() -> Load:
    """Get ready to be a generator, and read what to make."""
    raise_file_limit()
    gc.disable()  # a pause of ours would count as one of theirs
    return msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Load)


def write(message: Progress | Tally) -> None:
    """Tell the starter."""
    data = msgspec.msgpack.encode(message)
    # Not sys.stdout.buffer: unbuffered (PYTHONUNBUFFERED) it may write only a part.
    with open(sys.stdout.fileno(), "wb", closefd=False) as output:
        output.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)
