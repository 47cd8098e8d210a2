"""Simulated time: a heap of what happens next, moved on from one event to the next.

Two events of the same microsecond have no order in the real world, so chance decides theirs: a
heap entry is (time, random tie-breaker, number, callback). The same seed gives the same order.
"""

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

SECOND_US = 1_000_000

EVENTS_PER_SECOND_MAX = 1_000_000
"""More in one simulated second means that somebody turns in circles."""

_TIE_BITS = 24


class Livelock(Exception):  # noqa: N818 -- named for the condition
    """The world is busy and gets nowhere."""


class Timer:
    """Something that will happen, unless it is cancelled first."""

    __slots__ = ("_args", "_callback")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback: Callable[..., object] | None = callback
        self._args = args

    def cancel(self) -> None:
        """Let it never happen; cancelling twice, or too late, does nothing."""
        self._callback, self._args = None, ()

    def fire(self) -> None:
        """Let it happen now."""
        callback, args = self._callback, self._args
        if callback is not None:
            self.cancel()
            callback(*args)


class Scheduler:
    """The clock of the simulated world, which only :meth:`run` moves.

    Attributes:
        now_us: microseconds since the world began.
        events: how many events have happened.
    """

    def __init__(self, random: Random) -> None:
        self.now_us = 0
        self.events = 0
        self._random = random
        self._heap: list[tuple[int, int, int, Timer]] = []
        self._number = 0
        self._stopped = False

    @property
    def now_s(self) -> float:
        """Seconds since the world began."""
        return self.now_us / SECOND_US

    def after(self, delay_us: int, callback: Callable[..., object], *args: Any) -> Timer:
        """Call ``callback(*args)`` when ``delay_us`` have passed."""
        if delay_us < 0:
            raise ValueError(f"time does not go back: {delay_us}")
        timer = Timer(callback, args)
        self._number += 1
        tie = self._random.getrandbits(_TIE_BITS)
        heapq.heappush(self._heap, (self.now_us + delay_us, tie, self._number, timer))
        return timer

    def stop(self) -> None:
        """Let :meth:`run` return after the event that is happening."""
        self._stopped = True

    def run(self, until_us: int) -> None:
        """Let everything happen that is due by ``until_us``, in order; then it is ``until_us``.

        Raises:
            Livelock: things happen and happen while no time passes.
        """
        heap = self._heap
        self._stopped = False
        while heap and heap[0][0] <= until_us and not self._stopped:
            second_us = self.now_us + SECOND_US
            events_max = self.events + EVENTS_PER_SECOND_MAX
            while heap and heap[0][0] <= min(until_us, second_us) and not self._stopped:
                self.now_us, _, _, timer = heapq.heappop(heap)
                self.events += 1
                if self.events > events_max:
                    raise Livelock(f"{EVENTS_PER_SECOND_MAX} events in one second")
                timer.fire()
            if not self._stopped:
                self.now_us = max(self.now_us, min(until_us, second_us))
        if not self._stopped:
            self.now_us = max(self.now_us, until_us)
