"""What a cluster costs while nobody wants anything of it."""

import time

import msgspec

from raftkv.bench.cluster import throwaway_cluster, wait_leaders_home
from raftkv.bench.measure import Setting
from raftkv.bench.processes import WORKER, command_of, cpu_seconds, descendants_of
from raftkv.bench.report import Figure, Report
from raftkv.testing import LocalCluster

TARGET_PERCENT = 10.0
SETTLE_S = 5.0


class ProcessLoad(msgspec.Struct, frozen=True):
    """One process over the measured time."""

    node: str
    pid: int
    command: str
    percent: float
    """Of one core."""


def run(groups: int, seconds: float, setting: Setting) -> Report:
    """Start a cluster, leave it alone, and look at its processor time."""
    with throwaway_cluster(setting.parent, shards=groups) as cluster:
        setting.progress("waiting until every shard is led by its preferred node")
        wait_leaders_home(cluster)
        time.sleep(SETTLE_S)
        setting.progress(f"measuring for {seconds:.0f} s")
        loads = _measure(cluster, seconds)
    per_node: dict[str, float] = {}
    figures = []
    for load in loads:
        figures.append(Figure(f"{load.node}: {load.command}", load.percent, "%"))
        per_node[load.node] = per_node.get(load.node, 0.0) + load.percent
    figures += [
        Figure(f"{node}: all processes", percent, "%", TARGET_PERCENT)
        for node, percent in per_node.items()
    ]
    return setting.report(
        f"idle: {len(per_node)} nodes with {groups} groups each over {seconds:.0f} s, "
        "share of one core",
        figures,
        details={"processes": loads},
    )


def _measure(cluster: LocalCluster, seconds: float) -> list[ProcessLoad]:
    nodes = {
        pid: (name, "engine" if pid == cluster.pid(name) else _name_of(pid))
        for name in cluster.names
        for pid in (cluster.pid(name), *descendants_of(cluster.pid(name)))
    }
    began = time.monotonic()
    before = {pid: cpu_seconds(pid) for pid in nodes}
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    return [
        ProcessLoad(node, pid, name, 100 * (cpu_seconds(pid) - before[pid]) / elapsed)
        for pid, (node, name) in nodes.items()
    ]


def _name_of(pid: int) -> str:
    """What a process is, from its command line: ``python -m raftkv.web.worker`` is a worker."""
    command = command_of(pid)
    return "HTTP worker" if WORKER in command else " ".join(command[-2:])
