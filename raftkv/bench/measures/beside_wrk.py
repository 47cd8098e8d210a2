"""Is the load generator the bottleneck? The same load by it and by wrk, in turns.

wrk is written in C. On a full machine what our generator costs more than wrk is missing for the
servers, and throughput is lower by about that share; a generator that cannot send fast enough would
show as a far lower ratio, while the servers have time left.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec

from raftkv.bench.cluster import (
    addresses_of,
    server_processes,
    throwaway_cluster,
    wait_leaders_home,
)
from raftkv.bench.load.filling import fill_keys
from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import Servers, run_load
from raftkv.bench.load.summary import spread
from raftkv.bench.load.workload import Kind, Workload
from raftkv.bench.load.wrk import find_wrk, run_wrk
from raftkv.bench.measure import Setting
from raftkv.bench.processes import cpu_seconds
from raftkv.bench.report import Figure, Report
from raftkv.bench.turns import in_turns

SHARDS = 4
KINDS: Sequence[Kind] = ("put", "get")
WARMUP_S = 1.0


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    pairs: int
    connections: int
    seconds: int
    """Of each run."""


class Run(msgspec.Struct, frozen=True):
    """One run of one generator."""

    requests_per_s: float
    p50_s: float
    p99_s: float
    generator_us: float
    """Processor time of the generator for a request."""
    servers_us: float
    """Processor time of all processes of all nodes for a request."""
    failed: int


class Pair(msgspec.Struct, frozen=True):
    """Both, one right after the other."""

    ours: Run
    wrk: Run

    @property
    def ratio(self) -> float:
        """Throughput by ours, of that by wrk."""
        return self.ours.requests_per_s / self.wrk.requests_per_s


def run(plan: Plan, setting: Setting) -> Report:
    """Measure puts and gets to one node by both generators."""
    find_wrk()
    found: dict[str, list[Pair]] = {}
    with (
        throwaway_cluster(setting.parent, shards=SHARDS) as cluster,
        tempfile.TemporaryDirectory(prefix="raftkv-wrk-", dir=setting.parent) as scratch,
    ):
        wait_leaders_home(cluster)
        bench = _Bench(
            addresses_of(cluster.urls)[0],
            server_processes(cluster),
            plan,
            Path(scratch),
        )
        fill_keys(addresses_of(cluster.urls), Workload())
        for kind in KINDS:
            found[kind] = []
            for number in range(plan.pairs):
                setting.progress(f"{kind}, pair {number + 1} of {plan.pairs}")
                found[kind].append(bench.pair(Workload(kind), number))
    return setting.report(
        f"generator: {plan.connections} connections to one node, "
        f"{plan.pairs} pairs of {plan.seconds} s",
        [figure for kind, of_kind in found.items() for figure in figures(kind, of_kind)],
        notes=[
            f"{kind}: throughput by ours, of that by wrk: {spread([one.ratio for one in of_kind])}"
            for kind, of_kind in found.items()
        ],
        details={"pairs": found},
    )


class _Bench(msgspec.Struct, frozen=True):
    """What is loaded, and how."""

    address: tuple[str, int]
    servers: Servers
    plan: Plan
    scratch: Path

    def pair(self, workload: Workload, number: int) -> Pair:
        """One run of each."""
        return Pair(
            *in_turns(number, lambda: self.by_ours(workload), lambda: self.by_wrk(workload))
        )

    def by_ours(self, workload: Workload) -> Run:
        load = Load(
            (self.address,),
            self.plan.connections,
            self.plan.seconds,
            workload=workload,
            warmup_s=WARMUP_S,
        )
        result = run_load(load, servers=self.servers)
        servers_us = sum(cost.us_per_request or 0.0 for cost in result.servers.values())
        return Run(
            result.requests_per_s,
            result.latency.p50_s or 0.0,
            result.latency.p99_s or 0.0,
            result.generator.us_per_request or 0.0,
            servers_us,
            result.failed,
        )

    def by_wrk(self, workload: Workload) -> Run:
        before_s = self._servers_s()
        result = run_wrk(
            self.address, workload, self.plan.connections, self.plan.seconds, self.scratch
        )
        servers_s = self._servers_s() - before_s
        requests = max(1, result.requests)
        return Run(
            result.requests_per_s,
            result.p50_s,
            result.p99_s,
            1e6 * result.cpu_s / requests,
            1e6 * servers_s / requests,
            result.failed,
        )

    def _servers_s(self) -> float:
        return sum(cpu_seconds(pid) for pids in self.servers.values() for pid in pids)


def figures(kind: str, pairs: Sequence[Pair]) -> list[Figure]:
    """The medians of both generators, beside each other."""
    sides = (("ours", [pair.ours for pair in pairs]), ("wrk", [pair.wrk for pair in pairs]))
    found: list[Figure] = []
    for side, runs in sides:
        found += [
            Figure(
                f"{kind} by {side}: requests per second", median(r.requests_per_s for r in runs)
            ),
            Figure(f"{kind} by {side}: latency, median", median(r.p50_s for r in runs), "s"),
            Figure(f"{kind} by {side}: latency, p99", median(r.p99_s for r in runs), "s"),
            Figure(
                f"{kind} by {side}: generator's time, a request",
                median(r.generator_us for r in runs),
                "us",
            ),
            Figure(
                f"{kind} by {side}: servers' time, a request",
                median(r.servers_us for r in runs),
                "us",
            ),
            Figure(f"{kind} by {side}: requests failed", sum(r.failed for r in runs), "", 0),
        ]
    return found
