"""What the HTTP workers of a node have answered, put together from what each reports.

Every worker reports each second what it has answered since its last report, over the connection
that it has anyhow. So any of them can show the figures of all, and no counter goes back when one
of them is replaced.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from raftkv.raft.clock import Clock
from raftkv.rpc.messages import WorkerReport
from raftkv.status.histogram import HTTP_BOUNDS_S, DurationCounts

SECONDS_KEPT = 120

SETTLED_S = 1.25
"""This long after its beginning all workers have reported a second."""

GONE_S = 5.0
"""A worker that has not reported for so long is no longer shown."""

_FAILED = 500
_TOO_MANY = 429


class _Second:
    """All data requests that were answered in one second."""

    __slots__ = ("counts", "errors", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.counts = [0] * (len(HTTP_BOUNDS_S) + 1)


class HttpTraffic:
    """Totals since the engine's start, and the last two minutes second by second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._requests: dict[tuple[str, int], int] = {}
        self._durations: dict[str, DurationCounts] = {}
        self._seconds: dict[int, _Second] = {}
        self._workers: dict[int, dict[str, Any]] = {}
        self._heard: dict[int, float] = {}
        self._reports: dict[int, int] = {}
        self.log_lines_dropped = 0
        """How many lines of their logs all workers together have dropped."""

    def take(self, report: WorkerReport) -> None:
        """Add what one worker has answered since its last report."""
        second = self._second(report.second)
        requests = errors = 0
        for answered in report.answered:
            at = (answered.route, answered.status)
            self._requests[at] = self._requests.get(at, 0) + answered.count
            failed = answered.status >= _FAILED or answered.status == _TOO_MANY
            requests += answered.count
            errors += answered.count * failed
            if second is not None and is_data(answered.route):
                second.requests += answered.count
                second.errors += answered.count * failed
        for took in report.durations:
            durations = self._durations.setdefault(took.route, DurationCounts(HTTP_BOUNDS_S))
            durations.add(took.counts, took.sum_s)
            if second is not None and is_data(took.route):
                second.counts = [a + b for a, b in zip(second.counts, took.counts, strict=True)]
        self.log_lines_dropped += report.log_lines_dropped
        self._note_worker(report, requests, errors)
        self._reports[report.worker] = self.reports(report.worker) + 1

    def reports(self, worker: int) -> int:
        """How many reports have come under the number of this worker."""
        return self._reports.get(worker, 0)

    def reporter(self, worker: int) -> int | None:
        """The process that reported last under the number of this worker."""
        known = self._workers.get(worker)
        return None if known is None else known["pid"]

    def _note_worker(self, report: WorkerReport, requests: int, errors: int) -> None:
        before = self._workers.get(report.worker, {"requests": 0, "errors": 0})
        self._heard[report.worker] = self._clock.monotonic()
        self._workers[report.worker] = {
            "worker": report.worker,
            "pid": report.pid,
            "as_of_us": self._clock.time_us(),
            "requests": before["requests"] + requests,
            "errors": before["errors"] + errors,
            "in_flight": report.in_flight,
            "body_bytes": report.body_bytes,
            "cpu_s": report.cpu_s,
            "rss_bytes": report.rss_bytes,
        }

    def _second(self, number: int) -> _Second | None:
        """Return where a second is counted; None for one that is nobody's business any more."""
        newest = int(self._clock.time_us() / 1e6) + 1
        if not newest - SECONDS_KEPT < number <= newest:  # a report that was held up, or its clock
            return None
        if number not in self._seconds:
            self._seconds = {n: s for n, s in self._seconds.items() if n > newest - SECONDS_KEPT}
            self._seconds[number] = _Second()
        return self._seconds[number]

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        now, now_us = self._clock.monotonic(), self._clock.time_us()
        workers = [self._workers[w] for w, at in sorted(self._heard.items()) if now - at < GONE_S]
        return {
            "as_of_us": now_us,
            "workers": workers,
            "seconds": self._columns(int(now_us / 1e6 - SETTLED_S)),
            "totals": [
                {"route": route, "status": status, "count": count}
                for (route, status), count in sorted(self._requests.items())
            ],
            "histograms": {r: durations.facts() for r, durations in self._durations.items()},
        }

    def _columns(self, until: int) -> dict[str, Any]:
        none = _Second()
        begin = max(min(self._seconds, default=until + 1), until - SECONDS_KEPT + 1)
        seconds = [self._seconds.get(number, none) for number in range(begin, until + 1)]
        return {
            "until_s": until,
            "requests": [second.requests for second in seconds],
            "errors": [second.errors for second in seconds],
            "p50_ms": [percentile_ms(second.counts, 0.5) for second in seconds],
            "p99_ms": [percentile_ms(second.counts, 0.99) for second in seconds],
        }


def is_data(route: str) -> bool:
    """Whether a route reads or writes keys; pages that watch are not the traffic."""
    return route.startswith("kv_") or route in {"batch", "txn"}


def percentile_ms(counts: Sequence[int], share: float) -> float | None:
    """Estimate a percentile from a histogram, linear within its bucket; None without a request.

    As Prometheus' ``histogram_quantile`` does: beyond the last bound it is that bound.
    """
    up_to = list(accumulate(counts))
    if not up_to[-1]:
        return None
    rank = share * up_to[-1]
    bucket = next(place for place, count in enumerate(up_to) if count >= rank)
    if bucket == len(HTTP_BOUNDS_S):
        return HTTP_BOUNDS_S[-1] * 1000
    low = HTTP_BOUNDS_S[bucket - 1] if bucket else 0.0
    inside = (rank - (up_to[bucket] - counts[bucket])) / counts[bucket]
    return round((low + (HTTP_BOUNDS_S[bucket] - low) * inside) * 1000, 3)
