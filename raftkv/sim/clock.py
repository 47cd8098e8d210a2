"""Clocks that move only when the simulation says so."""

from raftkv.sim.scheduler import SECOND_US, Scheduler

WALL_START_US = 1_700_000_000 * SECOND_US
"""Where simulated wall clocks start: a plausible date, so that revisions look like real ones."""


class SimClock:
    """Monotonic and wall time for one node or for a whole simulated cluster.

    Time is kept in whole microseconds: summing floats would make the order of two deadlines
    depend on how time was cut into steps, and with it the course of a run.
    """

    def __init__(self, *, start_s: float = 1000.0, wall_us: int = WALL_START_US) -> None:
        self._elapsed_us = round(start_s * SECOND_US)
        self._wall_us = wall_us

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        return self._elapsed_us / SECOND_US

    def boottime(self) -> float:
        """As :meth:`monotonic`: nothing is suspended here."""
        return self.monotonic()

    def time_us(self) -> int:
        """Wall time in microseconds since the epoch; see :meth:`step_wall`."""
        return self._wall_us

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass on both clocks."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        microseconds = round(seconds * SECOND_US)
        self._elapsed_us += microseconds
        self._wall_us += microseconds

    def step_wall(self, delta_us: int) -> None:
        """Set the wall clock forward or back, as an operator or NTP does; monotonic stays."""
        self._wall_us += delta_us


class MachineClock:
    """The clocks of one machine: neither starts nor runs like any other machine's.

    Args:
        rate: seconds of this machine in one second of the world (drift).
        wall_offset_us: how wrong its wall clock is.
    """

    def __init__(
        self, scheduler: Scheduler, *, booted_s: float, rate: float, wall_offset_us: int
    ) -> None:
        self._scheduler = scheduler
        self._base_us = scheduler.now_us
        self._base_s = booted_s
        self._rate = rate
        self._wall_offset_us = wall_offset_us
        self.wall_reads = 0
        """How often somebody asked for the date."""
        self.timers = 0
        """How many timers were set by it."""

    def monotonic(self) -> float:
        """Seconds since some start; never goes back."""
        return self._base_s + (self._scheduler.now_us - self._base_us) * self._rate / SECOND_US

    def boottime(self) -> float:
        """As :meth:`monotonic`: machines are frozen here, but not suspended."""
        return self.monotonic()

    def time_us(self) -> int:
        """Wall time as this machine believes it, in microseconds since the epoch."""
        self.wall_reads += 1
        return WALL_START_US + self._scheduler.now_us + self._wall_offset_us

    def until_us(self, when: float) -> int:
        """World microseconds until :meth:`monotonic` shows ``when``, at the present rate."""
        self.timers += 1
        return max(0, int((when - self.monotonic()) * SECOND_US / self._rate)) + 1

    def drift(self, rate: float) -> None:
        """Run faster or slower from now on."""
        self._base_s, self._base_us = self.monotonic(), self._scheduler.now_us
        self._rate = rate

    def step_wall(self, delta_us: int) -> None:
        """Set the wall clock forward or back; monotonic time does not notice."""
        self._wall_offset_us += delta_us
