"""Thousands of idle connections and a hundred very slow clients: what do the others notice?

Three runs of the same well-behaved load: alone, in the crowd, and alone again, because a machine
that is busy with something else changes from minute to minute. All connections go to one node: one
HTTP worker holds them all.
"""

from typing import Any

from raftkv.bench.cluster import addresses_of, throwaway_cluster, wait_leaders_home
from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import generate
from raftkv.bench.load.summary import Summary, summarize
from raftkv.bench.load.tally import Tally, floats, is_accepted
from raftkv.bench.load.workload import Workload
from raftkv.bench.measure import Setting
from raftkv.bench.measures.crowd import Crowd, CrowdProcess, CrowdResult
from raftkv.bench.report import Figure, Report

SHARDS = 4
CONNECTIONS = 16
WARM_UP_S = 3.0
HALF_PUTS = Workload("a", value_bytes=16)
RATIO_MAX = 2.0


def run(idle: int, slow: int, seconds: float, setting: Setting) -> Report:
    """Measure and make the report."""
    with throwaway_cluster(setting.parent, shards=SHARDS) as cluster:
        wait_leaders_home(cluster)
        crowded_node = addresses_of(cluster.urls)[0]

        def measure(for_s: float) -> Tally:
            return generate(Load((crowded_node,), CONNECTIONS, for_s, workload=HALF_PUTS), 1)

        measure(WARM_UP_S)
        setting.progress(f"{CONNECTIONS} connections, alone")
        before = measure(seconds)
        setting.progress(f"with {idle} idle connections and {slow} slow clients")
        with CrowdProcess(Crowd(*crowded_node, idle, slow)) as crowd:
            crowded = measure(seconds)
        setting.progress("alone again")
        after = measure(seconds)
    return setting.report(
        "connections",
        _figures(before, crowded, after, crowd.attendance, seconds),
        notes=_notes(crowd.attendance),
        details={
            "alone_before": _facts(before),
            "crowded": _facts(crowded),
            "alone_after": _facts(after),
        },
    )


def _figures(
    before: Tally, crowded: Tally, after: Tally, crowd: CrowdResult, seconds: float
) -> list[Figure]:
    beside = summarize(crowded.accepted())
    alone = summarize([*before.accepted(), *after.accepted()])
    return [
        Figure("idle connections open in the end", crowd.idle_open),
        Figure("slow clients sending in the end", crowd.slow_open),
        *_of("alone", alone, 2 * seconds),
        *_of("in the crowd", beside, seconds),
        Figure("p99, crowd : alone", _ratio(beside.p99_s, alone.p99_s), "", RATIO_MAX),
        Figure("errors alone", _failed(before) + _failed(after), "", 0),
        Figure("errors in the crowd", _failed(crowded), "", 0),
    ]


def _of(where: str, summary: Summary, seconds: float) -> list[Figure]:
    return [
        Figure(f"{where}: requests per second", summary.count / seconds),
        Figure(f"{where}: median", summary.median_s, "s"),
        Figure(f"{where}: p99", summary.p99_s, "s"),
    ]


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _failed(tally: Tally) -> int:
    return sum(count for status, count in tally.statuses().items() if not is_accepted(status))


def _notes(crowd: CrowdResult) -> list[str]:
    ended = ", ".join(f"{count} x {status}" for status, count in crowd.slow_ended.items())
    slow = (
        f"Slow clients sent {crowd.bytes_sent_slowly} bytes, one a second each, and were answered"
    )
    return [
        f"{slow} {ended or 'nothing yet'}; each came back at once.",
        f"The server closed {crowd.idle_dropped} idle connections, which were opened again.",
    ]


def _facts(tally: Tally) -> dict[str, Any]:
    return {
        "statuses": tally.statuses(),
        "refusals": tally.refusals,
        "errors": tally.errors,
        "seconds": [summarize(floats(window.latencies)) for window in tally.windows],
    }
