"""What all load generators have in common: the load that they are given, and how they report.

A generator is a process, so that clients do not share an interpreter with each other. It reads a
:class:`Load`, says :class:`Ready` once it is connected, reads when the measured time begins, makes
the load, and writes now and then a :class:`Progress` and in the end a
:class:`~raftkv.bench.load.tally.Tally`: MessagePack behind its length, by standard input and
output.
"""

import array
import gc
import math
import resource
import sys
from typing import IO, Literal

import msgspec

from raftkv.bench.load.tally import Tally, Window, is_accepted
from raftkv.bench.load.workload import Workload

Carrier = Literal["http", "client", "kazoo"]
"""What makes the requests: :mod:`raftkv.bench.load.http_load`, our Python client
(:mod:`raftkv.bench.load.client_load`), or ZooKeeper's (:mod:`raftkv.bench.load.kazoo_load`)."""

MODULES: dict[Carrier, str] = {
    "http": "raftkv.bench.load.http_load",
    "client": "raftkv.bench.load.client_load",
    "kazoo": "raftkv.bench.load.kazoo_load",
}
EXAMPLES_KEPT = 5
_LENGTH_BYTES = 4
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
    carrier: Carrier = "http"


class Ready(msgspec.Struct, tag="ready"):
    """The generator could begin at once."""


class Progress(msgspec.Struct, tag="progress"):
    """How far a load is."""

    answered: int = 0
    failed: int = 0
    """Refused, broken, not sent or answered with something else than success."""


class Recorder:
    """Puts outcomes into the seconds of the measured time; what began before that is not kept."""

    def __init__(self, load: Load, begin: float = 0.0) -> None:
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
    return msgspec.msgpack.decode(read_frame(sys.stdin.buffer), type=Load)


def begin_together() -> float:
    """Say that this generator is ready; return when, by the monotonic clock, measuring begins.

    All processes of a machine share that clock.
    """
    write(Ready())
    return msgspec.msgpack.decode(read_frame(sys.stdin.buffer), type=float)


def write(message: Ready | Progress | Tally) -> None:
    """Tell the starter."""
    # Not sys.stdout.buffer: unbuffered (PYTHONUNBUFFERED) it may write only a part.
    with open(sys.stdout.fileno(), "wb", closefd=False) as output:
        output.write(frame(message))


def frame(message: object) -> bytes:
    """A message behind its length."""
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


def read_frame(stream: IO[bytes]) -> bytes:
    """The next message; empty at the end."""
    return stream.read(int.from_bytes(stream.read(_LENGTH_BYTES), "big"))
