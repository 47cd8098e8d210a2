"""What one HTTP worker counts: cheap to count, and handed to its engine every second."""

import os
import resource
import threading
import time
from collections.abc import Callable

from prometheus_client.registry import Collector

from raftkv.rpc import logs
from raftkv.rpc.messages import Answered, Took, WorkerReport
from raftkv.rpc.process import resident_bytes
from raftkv.status.durations import HTTP_BOUNDS_S, DurationCounts

_LATE_S = 0.1
"""A report made this soon after a second's end is about that second."""


class WorkerMetrics:
    """The counters of one worker since its last report. The lock guards them.

    Requests are counted on the loop and in the threads of the Flask side. ``collectors`` are
    figures that this worker finds by itself, without an engine.
    """

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._answered: dict[tuple[str, int], int] = {}
        self._durations: dict[str, DurationCounts] = {}
        self.in_flight: Callable[[], int] = int
        """Data requests that are being worked on."""
        self.body_bytes: Callable[[], int] = int
        """Bytes of request bodies held in memory."""
        self.collectors: list[Collector] = []
        self._lines_dropped = 0  # as it was at the last report

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        with self._lock:
            self._answered[route, status] = self._answered.get((route, status), 0) + 1
            durations = self._durations.get(route)
            if durations is None:
                durations = self._durations[route] = DurationCounts(HTTP_BOUNDS_S)
            durations.note(seconds)

    def report(self) -> WorkerReport:
        """Return what was counted since the last report; it is not told a second time."""
        with self._lock:
            answered, self._answered = self._answered, {}
            durations, self._durations = self._durations, {}
        before, self._lines_dropped = self._lines_dropped, logs.dropped()
        return WorkerReport(
            worker=self._worker,
            pid=os.getpid(),
            second=int(time.time() - _LATE_S),
            in_flight=self.in_flight(),
            body_bytes=self.body_bytes(),
            cpu_s=round(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 3),
            rss_bytes=resident_bytes(),
            answered=tuple(Answered(*at, count) for at, count in answered.items()),
            durations=tuple(Took(route, *counts.take()) for route, counts in durations.items()),
            log_lines_dropped=self._lines_dropped - before,
        )
