"""What the HTTP workers of a node report, put together."""

import pytest

from raftkv.engine.http_traffic import SECONDS_KEPT, HttpTraffic, percentile_ms
from raftkv.rpc.messages import Answered, Took, WorkerReport
from raftkv.sim.clock import SimClock
from raftkv.status.durations import HTTP_BOUNDS_S
from raftkv.status.facts import RouteCount, SecondsFacts


def counts(**buckets: int) -> tuple[int, ...]:
    """Histogram counts; ``b3=2`` puts two into the fourth bucket."""
    return tuple(buckets.get(f"b{place}", 0) for place in range(len(HTTP_BOUNDS_S) + 1))


def report(
    second: int, *answered: tuple[str, int, int], worker: int = 0, pid: int = 1, **buckets: int
) -> WorkerReport:
    """What a worker says of one second."""
    return WorkerReport(
        worker=worker,
        pid=pid,
        second=second,
        in_flight=2,
        body_bytes=0,
        cpu_s=0.5,
        rss_bytes=10,
        answered=tuple(Answered(*row) for row in answered),
        durations=(Took("kv_get", counts(**buckets), 0.25),),
    )


@pytest.fixture
def clock() -> SimClock:
    """Unix time 1000.0 and later."""
    return SimClock(start_s=1000.0, wall_us=1_000_000_000)


def seconds_of(traffic: HttpTraffic) -> SecondsFacts:
    """What is drawn."""
    seconds = traffic.facts().seconds
    assert seconds is not None
    return seconds


def test_all_workers_are_added_up(clock: SimClock) -> None:
    """Totals and histograms are the node's, whichever worker is asked; each is shown as well."""
    traffic = HttpTraffic(clock)
    traffic.take(report(999, ("kv_get", 200, 5), ("kv_get", 503, 1), b1=6))
    traffic.take(report(999, ("kv_get", 200, 2), worker=1, b2=2))
    facts = traffic.facts()
    assert facts.totals == (RouteCount("kv_get", 200, 7), RouteCount("kv_get", 503, 1))
    assert facts.histograms["kv_get"].counts == counts(b1=6, b2=2)
    assert facts.histograms["kv_get"].sum_s == 0.5
    assert [(w.worker, w.requests, w.errors) for w in facts.workers] == [
        (0, 6, 1),
        (1, 2, 0),
    ]


def test_counters_do_not_go_back_when_a_worker_is_replaced(clock: SimClock) -> None:
    """Another process under the same number begins to count anew; the totals go on."""
    traffic = HttpTraffic(clock)
    traffic.take(report(999, ("batch", 200, 5)))
    clock.advance(10)
    assert traffic.facts().workers == ()  # it is not heard of any more
    traffic.take(report(1009, ("batch", 200, 1), pid=2))
    facts = traffic.facts()
    assert facts.totals == (RouteCount("batch", 200, 6),)
    assert [(w.pid, w.requests) for w in facts.workers] == [(2, 6)]


def test_seconds(clock: SimClock) -> None:
    """A second is shown once all workers have reported it; one without a request is a zero."""
    traffic = HttpTraffic(clock)
    traffic.take(report(1000, ("kv_get", 200, 1), b0=1))
    clock.advance(1001.2 - clock.monotonic())
    assert seconds_of(traffic).until_s == 999
    traffic.take(report(1000, ("kv_get", 429, 1), worker=1, b0=1))
    clock.advance(1003.3 - clock.monotonic())
    traffic.take(report(1002, ("kv_get", 200, 3), b1=3))
    seconds = seconds_of(traffic)
    assert seconds.until_s == 1002
    assert (seconds.requests, seconds.errors) == ((2, 0, 3), (1, 0, 0))
    assert seconds.p50_ms == (0.25, None, 0.75)


def test_pages_that_watch_are_no_traffic(clock: SimClock) -> None:
    """What operators ask for is counted, and leaves the picture of the data's traffic alone."""
    traffic = HttpTraffic(clock)
    traffic.take(report(1000, ("status", 200, 4)))
    clock.advance(1002.3 - clock.monotonic())
    facts = traffic.facts()
    assert facts.totals[0].count == 4
    assert seconds_of(traffic).requests == (0, 0)


def test_memory_is_bounded(clock: SimClock) -> None:
    """Only the last seconds are kept; a report from another time is counted, not drawn."""
    traffic = HttpTraffic(clock)
    for _ in range(3 * SECONDS_KEPT):
        traffic.take(report(int(clock.monotonic()), ("kv_get", 200, 1), b0=1))
        clock.advance(1)
    traffic.take(report(0, ("kv_get", 200, 1), b0=1))
    traffic.take(report(10**9, ("kv_get", 200, 1), b0=1))
    facts = traffic.facts()
    assert len(seconds_of(traffic).requests) <= SECONDS_KEPT
    assert len(traffic._seconds) <= SECONDS_KEPT + 1
    assert facts.totals[0].count == 3 * SECONDS_KEPT + 2


def test_percentiles() -> None:
    """Linear within a bucket; beyond the last bound it is that bound."""
    assert percentile_ms(counts(), 0.5) is None
    assert percentile_ms(counts(b0=10), 0.5) == 0.25
    assert percentile_ms(counts(b0=50, b1=50), 0.99) == 0.99
    assert percentile_ms(counts(b14=1), 0.5) == 10_000
