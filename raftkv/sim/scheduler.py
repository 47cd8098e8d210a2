"""Simulated time: a heap of what happens next, moved on from one event to the next.

Two events of the same microsecond have no order in the real world, so chance decides theirs: a
heap entry is (time, random tie-breaker, number, callback). The same seed gives the same order.
"""

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

SECOND_US = 1_000_000

_TIE_BITS = 24


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

    def run(self, until_us: int, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Let everything happen that is due by ``until_us``, in order.

        Stops early as soon as ``unless()`` holds after an event; time then stays at that event.
        """
        heap = self._heap
        while heap and heap[0][0] <= until_us:
            self.now_us, _, _, timer = heapq.heappop(heap)
            self.events += 1
            timer.fire()
            if unless():
                return
        self.now_us = max(self.now_us, until_us)
