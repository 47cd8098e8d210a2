"""Time as a seam: the real clock for production, a simulated one for tests."""

import time
from typing import Protocol


class Clock(Protocol):
    """What Raft and the engine ask of time."""

    def monotonic(self) -> float:
        """Seconds that only grow; the only time that decisions are made by.

        Not while the machine is suspended: nobody is deposed for the time that it slept.
        """

    def boottime(self) -> float:
        """Seconds that only grow, also while the machine is suspended: for how old something is."""

    def time_us(self) -> int:
        """Wall clock in microseconds since 1970; feeds revisions and nothing else."""


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)  # itself: it is read a dozen times for a put

    def boottime(self) -> float:
        """Return the kernel's clock that does not stop in a suspend."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def time_us(self) -> int:
        """Return the wall clock in microseconds."""
        return time.time_ns() // 1000
