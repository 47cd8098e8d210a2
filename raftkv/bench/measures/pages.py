"""What do operators who look cost the clients? Load with and without open pages, in turns."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import msgspec
import urllib3

from raftkv.bench.cluster import (
    addresses_of,
    server_processes,
    throwaway_cluster,
    wait_leaders_home,
)
from raftkv.bench.load.filling import fill_keys
from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import run_load
from raftkv.bench.load.workload import Workload
from raftkv.bench.measure import Setting
from raftkv.bench.processes import cpu_seconds
from raftkv.bench.report import Figure, Report

SHARDS = 4
CONNECTIONS = 64
PERIOD_S = 1.0
"""Of each page, and of the scrape."""
TARGET_PERCENT = 1.0
WARMUP_S = 1.0


class Pair(msgspec.Struct, frozen=True):
    """Requests a second without and with viewers, one right after the other."""

    without: float
    viewed: float


class Measured(msgspec.Struct, frozen=True):
    """All that was measured."""

    pairs: Sequence[Pair]
    idle_percent: float
    """Of one core, all processes of all nodes, without load and viewers."""
    viewed_percent: float
    """The same with viewers."""


def run(pages: int, pairs: int, seconds: float, setting: Setting) -> Report:
    """Measure pairs of runs in alternating order, and what viewers cost an idle cluster."""
    with throwaway_cluster(setting.parent, shards=SHARDS) as cluster:
        wait_leaders_home(cluster)
        url = cluster.urls[0]
        pids = [pid for of_kind in server_processes(cluster).values() for pid in of_kind]
        load = Load(
            addresses_of(cluster.urls),
            CONNECTIONS,
            seconds,
            workload=Workload("a"),
            warmup_s=WARMUP_S,
        )
        fill_keys(load.addresses, load.workload)
        measured = []
        for number in range(pairs):
            setting.progress(f"pair {number + 1} of {pairs}")
            found: dict[bool, float] = {}
            for viewed in (False, True) if number % 2 == 0 else (True, False):
                with viewers(url, pages if viewed else 0):
                    found[viewed] = run_load(load).requests_per_s
            measured.append(Pair(found[False], found[True]))
        setting.progress("an idle cluster")
        idle = _percent(pids, seconds)
        with viewers(url, pages):
            viewed_percent = _percent(pids, seconds)
    result = Measured(measured, idle, viewed_percent)
    return setting.report(
        f"pages: {pages} open pages and a scrape a second beside {CONNECTIONS} connections, "
        f"{pairs} pairs of {seconds:g} s",
        figures(result),
        notes=[
            "Throughput with viewers, of that without: "
            + ", ".join(f"{100 * pair.viewed / pair.without:.1f} %" for pair in result.pairs)
        ],
        details={"measured": result},
    )


def figures(measured: Measured) -> list[Figure]:
    """The cost to throughput, and in processor time."""
    lost = median(100 * (1 - pair.viewed / pair.without) for pair in measured.pairs)
    cost = measured.viewed_percent - measured.idle_percent
    return [
        Figure("requests per second without viewers, median", median(_without(measured))),
        Figure("of these lost to viewers, median of pairs", lost, "%", TARGET_PERCENT),
        Figure("processor time for the viewers, of one core", cost, "%"),
    ]


def _without(measured: Measured) -> list[float]:
    return [pair.without for pair in measured.pairs]


@contextmanager
def viewers(url: str, pages: int) -> Iterator[None]:
    """So many open pages as the script keeps them, and one scrape a second; none if 0."""
    stop = threading.Event()
    paths = ["/?part=main"] * pages + (["/metrics"] if pages else [])
    threads = [
        threading.Thread(target=_view, args=(url + path, stop, number / len(paths)), daemon=True)
        for number, path in enumerate(paths)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _view(url: str, stop: threading.Event, phase: float) -> None:
    due = time.monotonic() + phase * PERIOD_S
    with urllib3.PoolManager(retries=False) as pool:
        while not stop.wait(max(0.0, due - time.monotonic())):
            pool.request("GET", url)
            due = max(due + PERIOD_S, time.monotonic())


def _percent(pids: Sequence[int], seconds: float) -> float:
    began, before = time.monotonic(), sum(map(cpu_seconds, pids))
    time.sleep(seconds)
    return 100 * (sum(map(cpu_seconds, pids)) - before) / (time.monotonic() - began)
