"""A clock that moves only when the simulation says so."""

_MICROSECONDS = 1_000_000

WALL_START_US = 1_700_000_000 * _MICROSECONDS
"""Where simulated wall clocks start: a plausible date, so that revisions look like real ones."""


class SimClock:
    """Monotonic and wall time for one node or for a whole simulated cluster.

    Time is kept in whole microseconds: summing floats would make the order of two deadlines
    depend on how time was cut into steps, and with it the course of a run.
    """

    def __init__(self, *, start_s: float = 1000.0, wall_us: int = WALL_START_US) -> None:
        self._elapsed_us = round(start_s * _MICROSECONDS)
        self._wall_us = wall_us

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        return self._elapsed_us / _MICROSECONDS

    def time_us(self) -> int:
        """Wall time in microseconds since the epoch; see :meth:`step_wall`."""
        return self._wall_us

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass on both clocks."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        microseconds = round(seconds * _MICROSECONDS)
        self._elapsed_us += microseconds
        self._wall_us += microseconds

    def step_wall(self, delta_us: int) -> None:
        """Set the wall clock forward or back, as an operator or NTP does; monotonic stays."""
        self._wall_us += delta_us
