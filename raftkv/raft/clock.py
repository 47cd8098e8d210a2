"""Time as a seam: the real clock for production, a simulated one for tests."""

import time
from functools import partial
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

    boottime = staticmethod(partial(time.clock_gettime, time.CLOCK_BOOTTIME))

    def time_us(self) -> int:
        """Return the wall clock in microseconds."""
        return time.time_ns() // 1000


class SinceBoot:
    """A clock that goes on while the machine is suspended, for whoever promises how old things are.

    Whoever waits for an answer waits meanwhile, too, and asks elsewhere: a request that slept with
    its node is not to be served when that wakes.
    """

    def __init__(self, clock: Clock) -> None:
        self.monotonic = self.boottime = clock.boottime
        self.time_us = clock.time_us
