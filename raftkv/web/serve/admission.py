"""How many requests of a worker may wait for the engine: about as many as it answers in time.

A fixed bound is wrong somewhere: 4,096 requests are a tenth of a second's work for a fast node and
five seconds' for a slow disk, which is longer than clients wait. The time that an accepted request
waits is what waits before it divided by the rate of answers (Little's law), so the bound follows
that rate. What is over it is refused at once, definite, and a refusal costs a small part of an
answer.
"""

import time
from collections.abc import Callable

_WINDOW_S = 0.5
"""The rate is that of the last stretch of this length: long against a pause of the engine."""


class Admission:
    """Counts the requests that wait for the engine and refuses those that would wait too long.

    Args:
        wait_s: how long an accepted request should wait at most, about.
        floor: so many may always wait. A worker that was idle knows no rate.
        ceiling: never more than this.
    """

    def __init__(
        self,
        *,
        wait_s: float,
        floor: int,
        ceiling: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wait_s = wait_s
        self._floor = min(floor, ceiling)
        self._ceiling = ceiling
        self._clock = clock
        self._answers = 0
        self._window_began = clock()
        self._limit = self._floor
        self.in_flight = 0

    @property
    def is_full(self) -> bool:
        """Whether one more would wait too long."""
        if self.in_flight < self._floor:
            return False  # nearly always: no clock is read
        elapsed_s = self._clock() - self._window_began
        if elapsed_s >= _WINDOW_S:
            self._next_window(elapsed_s)
        return self.in_flight >= self._limit

    def enter(self) -> None:
        """Count a request that goes to the engine."""
        self.in_flight += 1

    def leave(self, *, answered: bool) -> None:
        """Count one that came back; one that the engine refused or gave up says nothing."""
        self.in_flight -= 1
        self._answers += answered

    def _next_window(self, elapsed_s: float) -> None:
        within_time = int(self._answers / elapsed_s * self._wait_s)
        self._limit = min(self._ceiling, max(self._floor, within_time))
        self._answers = 0
        self._window_began += elapsed_s
