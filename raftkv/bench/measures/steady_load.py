"""``raftkv bench load``: one load, steady, and what it was like."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from raftkv.bench.cluster import (
    addresses_of,
    check_reachable,
    server_processes,
    throwaway_cluster,
    wait_leaders_home,
)
from raftkv.bench.load.filling import fill_keys
from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import LoadResult, OnProgress, Servers, run_load
from raftkv.bench.load.workload import Workload
from raftkv.bench.measure import Setting
from raftkv.bench.report import Figure, Report

SHARDS = 4
Spread = Literal["all", "one"]


class Plan(msgspec.Struct, frozen=True):
    """One load on one cluster."""

    workload: Workload
    connections: int
    seconds: float
    warmup_s: float
    rate: float | None = None
    spread: Spread = "all"
    processes: int = 1
    endpoints: tuple[str, ...] = ()
    """Of a cluster that runs already; none: an own one is started."""


def run(plan: Plan, setting: Setting, show: OnProgress) -> Report:
    """Make the load and the report."""
    with _cluster(plan, setting.parent) as (urls, servers):
        addresses = addresses_of(urls if plan.spread == "all" else urls[:1])
        if plan.workload.reads:
            fill_keys(addresses, plan.workload)
        load = Load(
            addresses,
            plan.connections,
            plan.seconds,
            rate=plan.rate,
            workload=plan.workload,
            warmup_s=plan.warmup_s,
        )
        result = run_load(load, processes=plan.processes, servers=servers, progress=show)
    return setting.report(
        f"load: {_described(plan)}",
        _figures(result),
        notes=notes(result),
        details={"plan": plan, "result": result},
    )


@contextlib.contextmanager
def _cluster(plan: Plan, parent: Path | None) -> Iterator[tuple[Sequence[str], Servers]]:
    if plan.endpoints:
        check_reachable(plan.endpoints)
        yield plan.endpoints, {}
        return
    with throwaway_cluster(parent, shards=SHARDS) as cluster:
        wait_leaders_home(cluster)
        yield cluster.urls, server_processes(cluster)


def _described(plan: Plan) -> str:
    workload = plan.workload
    loop = "closed loop" if plan.rate is None else f"{plan.rate:,.0f} requests/s"
    size = f" of {workload.batch_size}" if workload.kind in {"batch", "scan"} else ""
    where = "all nodes" if plan.spread == "all" else "one node"
    return (
        f"{workload.kind}{size}, {plan.connections} connections to {where}, {loop}, "
        f"{workload.keys:,} keys of {workload.key_bytes} bytes ({workload.distribution}), "
        f"values of {workload.value_bytes} bytes, {plan.seconds:g} s"
    )


def _figures(result: LoadResult) -> list[Figure]:
    latency = result.latency
    per_operation = (
        [Figure("operations per second", result.operations_per_s)]
        if result.operations_per_s != result.requests_per_s
        else []
    )
    return [
        Figure("requests per second", result.requests_per_s),
        *per_operation,
        Figure("latency, median", latency.p50_s, "s"),
        Figure("latency, p90", latency.p90_s, "s"),
        Figure("latency, p99", latency.p99_s, "s"),
        Figure("latency, p99.9", latency.p999_s, "s"),
        Figure("latency, worst", latency.max_s, "s"),
        Figure("requests failed", result.failed, "", 0),
        *(
            Figure(f"processor time of a request: {kind}", cost.us_per_request, "us")
            for kind, cost in (*result.servers.items(), ("generator", result.generator))
        ),
    ]


def notes(result: LoadResult) -> list[str]:
    """Who used how much of the machine, and what failed."""
    cores = {**result.servers, "generator": result.generator}
    used = ", ".join(f"{kind} {cost.cores:.2f}" for kind, cost in cores.items())
    said = [
        f"Cores used: {used}.",
        f"The generator sent at most {1000 * result.late_s_max:.0f} ms late.",
    ]
    if result.failed:
        said.append(f"Answers by status: {result.statuses}; examples: {result.errors}")
    return said
