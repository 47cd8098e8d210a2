"""Time as a seam: the real clock for production, a simulated one for tests."""

import time
from typing import Protocol


class Clock(Protocol):
    """What Raft and the engine ask of time."""

    def monotonic(self) -> float:
        """Seconds that only grow; the only time that decisions are made by."""

    def time_us(self) -> int:
        """Wall clock in microseconds since 1970; feeds revisions and nothing else."""


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)  # itself: it is read a dozen times for a put

    def time_us(self) -> int:
        """Return the wall clock in microseconds."""
        return time.time_ns() // 1000
