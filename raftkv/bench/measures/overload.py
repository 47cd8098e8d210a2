"""Four times as much as the cluster can do: is what it accepts still answered soon?

First what the cluster can do is measured with a closed loop; then that, times a factor, is offered
in an open loop. Everything runs on one machine: the clients and the refusals take processor time
from the answers, so fewer are accepted than without overload. What must not happen is that latency
grows with the time that the overload lasts, that a refusal leaves doubt, or that a leader falls
because its heartbeats come late.
"""

from collections.abc import Callable, Sequence
from typing import Any

from raftkv.bench.cluster import (
    addresses_of,
    server_processes,
    throwaway_cluster,
    wait_leaders_home,
)
from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import generate
from raftkv.bench.load.summary import summarize
from raftkv.bench.load.tally import Tally, Window, floats, is_accepted
from raftkv.bench.measure import Setting
from raftkv.bench.processes import cpu_seconds
from raftkv.bench.report import Figure, Report
from raftkv.testing import LocalCluster

SHARDS = 4
FACTOR = 4.0

CAPACITY_CONNECTIONS = (64, 256)
"""Concurrency of the closed loops; what the cluster can do is the best of them."""

CAPACITY_S = 8.0
WARM_UP_S = 3.0

CLIENT_PROCESSES = 2
REFUSED = ("429", "503")

P99_S_MAX = 2.0
"""A worker accepts what should wait half a second for the engine; the rest is the processor's."""

GROWTH_MAX = 1.5
"""The p99 of the last third beside that of the first: a queue without a bound grows on and on."""


def run(seconds: float, connections: int, setting: Setting) -> Report:
    """Measure and make the report."""
    with throwaway_cluster(setting.parent, shards=SHARDS) as cluster:
        wait_leaders_home(cluster)
        capacity = _capacity(cluster, setting.progress)
        rate = FACTOR * capacity
        terms = _terms(cluster)
        setting.progress(
            f"offering {rate:,.0f} puts/s for {seconds:.0f} s on {connections} connections"
        )
        cpu_before = _cpu(cluster)
        load = Load(addresses_of(cluster.urls), connections, seconds, rate=rate)
        tally = generate(load, CLIENT_PROCESSES)
        cpu = {what: after - cpu_before[what] for what, after in _cpu(cluster).items()}
        cpu["clients"] = tally.cpu_s
        terms_after = _terms(cluster)
    changed = sum(terms_after[shard] != term for shard, term in terms.items())
    return setting.report(
        "overload",
        _figures(tally, seconds, capacity, changed),
        notes=_notes(tally, cpu, seconds),
        details={
            "terms_before": terms,
            "terms_after": terms_after,
            "statuses": tally.statuses(),
            "refusals": tally.refusals,
            "cpu_s": cpu,
            "bad_refusals": tally.bad_refusals,
            "errors": tally.errors,
            "seconds": [_second(window) for window in tally.windows],
        },
    )


def _capacity(cluster: LocalCluster, progress: Callable[[str], None]) -> float:
    """Puts a second that the cluster answers when nobody asks for more."""
    generate(
        Load(addresses_of(cluster.urls), max(CAPACITY_CONNECTIONS), WARM_UP_S), CLIENT_PROCESSES
    )
    best = 0.0
    for connections in CAPACITY_CONNECTIONS:
        load = Load(addresses_of(cluster.urls), connections, CAPACITY_S)
        per_s = len(generate(load, CLIENT_PROCESSES).accepted()) / CAPACITY_S
        progress(f"closed loop, {connections} connections: {per_s:,.0f} puts/s")
        best = max(best, per_s)
    return best


def _terms(cluster: LocalCluster) -> dict[int, int]:
    return {shard: int(row["term"]) for shard, row in cluster.shards().items()}


def _cpu(cluster: LocalCluster) -> dict[str, float]:
    """Processor time of all engines, and of all their HTTP workers."""
    processes = server_processes(cluster)
    return {f"{kind}s": sum(map(cpu_seconds, pids)) for kind, pids in processes.items()}


# --- what is said of it -------------------------------------------------------------------------


def _figures(tally: Tally, seconds: float, capacity: float, changed: int) -> list[Figure]:
    statuses = tally.statuses()
    accepted = summarize(tally.accepted())
    refused = summarize(floats(tally.refused_latencies))
    by_third = [summarize(_latencies(part)).p99_s for part in _thirds(tally.windows)]
    others = sum(
        count
        for status, count in statuses.items()
        if not is_accepted(status) and status not in (*REFUSED, "504", "unsent")
    )
    return [
        Figure("puts per second in a closed loop", capacity),
        Figure("puts per second offered", tally.total / seconds),
        Figure("of these accepted", accepted.count / seconds),
        *(Figure(f"refused with {code}", statuses.get(code, 0) / seconds) for code in REFUSED),
        Figure("not sent: every connection was waiting", statuses.get("unsent", 0) / seconds),
        Figure("accepted: median latency", accepted.median_s, "s"),
        Figure("accepted: p99", accepted.p99_s, "s", P99_S_MAX),
        Figure("accepted: worst", accepted.worst_s, "s"),
        *(
            Figure(f"accepted: p99 in the {name} third", p99_s, "s")
            for name, p99_s in zip(("first", "second", "last"), by_third, strict=True)
        ),
        Figure("p99, last third : first third", _ratio(by_third[2], by_third[0]), "", GROWTH_MAX),
        Figure("refused: median latency", refused.median_s, "s"),
        Figure("refused: p99", refused.p99_s, "s"),
        Figure("refusals not definite or without Retry-After", tally.bad_refusals_count, "", 0),
        Figure("outcomes unknown (504)", statuses.get("504", 0), "", 0),
        Figure("other answers, errors, no answer", others, "", 0),
        Figure("shards whose term changed", changed, "", 0),
    ]


def _notes(tally: Tally, cpu: dict[str, float], seconds: float) -> list[str]:
    sent = max(1, tally.total - tally.count("unsent"))
    cores = ", ".join(f"{what} {used_s / seconds:.2f}" for what, used_s in cpu.items())
    cost_us, late_ms = 1e6 * tally.cpu_s / sent, 1000 * tally.late_s_max
    clients = f"Clients: {CLIENT_PROCESSES} processes on the same machine"
    return [
        f"{clients}, {cost_us:.0f} us of processor time a request, at most {late_ms:.0f} ms late.",
        f"Cores used: {cores}.",
    ]


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _thirds(windows: Sequence[Window]) -> list[Sequence[Window]]:
    third = max(1, len(windows) // 3)
    return [windows[:third], windows[third:-third], windows[-third:]]


def _latencies(windows: Sequence[Window]) -> Sequence[float]:
    return floats(b"".join(window.latencies for window in windows))


def _second(window: Window) -> dict[str, Any]:
    accepted = summarize(floats(window.latencies))
    return {"statuses": window.statuses, "median_s": accepted.median_s, "p99_s": accepted.p99_s}
