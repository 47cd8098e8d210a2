"""``raftkv bench floor``: a put beside the same way with nothing on it.

:mod:`raftkv.bench.measures.skeleton` takes a request over the same kinds of processes, sockets and
disks as a put, and does nothing with it. Below what that takes no store of this build can go; what
raftkv takes beyond it is its own code. Both are loaded in turns.
"""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec

from raftkv.bench.cluster import (
    NODES,
    addresses_of,
    server_processes,
    throwaway_cluster,
    wait_leaders_home,
)
from raftkv.bench.load.filling import fill_keys
from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import LoadResult, Servers, run_load
from raftkv.bench.load.summary import spread
from raftkv.bench.load.workload import Workload
from raftkv.bench.measure import Setting
from raftkv.bench.measures.limits import wait_for
from raftkv.bench.measures.skeleton import Node
from raftkv.bench.report import Figure, Report
from raftkv.bench.turns import in_turns
from raftkv.interpreter import PYTHON_M
from raftkv.testing.ports import PortReservation

CONNECTIONS = (1, 16, 64, 256)
SHARDS = 4
WARMUP_S = 1.0

Addresses = tuple[tuple[str, int], ...]


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    pairs: int
    seconds: float
    """Of each run."""


class Pair(msgspec.Struct, frozen=True):
    """Both, one right after the other."""

    raftkv: LoadResult
    skeleton: LoadResult

    @property
    def share(self) -> float:
        """Throughput of raftkv, of that of the skeleton."""
        return self.raftkv.requests_per_s / self.skeleton.requests_per_s


def run(plan: Plan, setting: Setting) -> Report:
    """Load a cluster and a skeleton by puts to all nodes.

    Raises:
        LoadError: The skeleton does not start.
    """
    found: dict[int, list[Pair]] = {}
    with (
        throwaway_cluster(setting.parent, shards=SHARDS) as cluster,
        running_skeleton(setting.parent) as skeleton,
    ):
        wait_leaders_home(cluster)
        ours = addresses_of(cluster.urls), server_processes(cluster)
        fill_keys(ours[0], Workload())
        for connections in CONNECTIONS:
            found[connections] = []
            for number in range(plan.pairs):
                setting.progress(f"{connections} connections, pair {number + 1} of {plan.pairs}")
                found[connections].append(_pair(plan, connections, ours, skeleton, number))
    return setting.report(
        f"floor: puts to all nodes, beside their way alone, {plan.pairs} pairs of {plan.seconds} s",
        [figure for connections, pairs in found.items() for figure in figures(connections, pairs)],
        notes=[
            f"{connections} connections: raftkv has {spread([pair.share for pair in pairs])} "
            "of the skeleton's throughput"
            for connections, pairs in found.items()
        ],
        details={"pairs": {str(connections): pairs for connections, pairs in found.items()}},
    )


def _pair(
    plan: Plan,
    connections: int,
    ours: tuple[Addresses, Servers],
    skeleton: tuple[Addresses, Servers],
    number: int,
) -> Pair:
    def loaded(side: tuple[Addresses, Servers]) -> LoadResult:
        addresses, servers = side
        load = Load(
            addresses, connections, plan.seconds, workload=Workload("put"), warmup_s=WARMUP_S
        )
        return run_load(load, servers=servers)

    return Pair(*in_turns(number, lambda: loaded(ours), lambda: loaded(skeleton)))


@contextmanager
def running_skeleton(parent: Path | None) -> Iterator[tuple[Addresses, dict[str, list[int]]]]:
    """Three nodes of it: where they answer, and their processes by what they are."""
    pids: dict[str, list[int]] = {"engine": [], "worker": []}
    with (
        tempfile.TemporaryDirectory(prefix="raftkv-floor-", dir=parent) as directory,
        contextlib.ExitStack() as running,
    ):
        reserved = PortReservation(2 * NODES)
        running.callback(reserved.release)
        ports = reserved.ports
        for number in range(NODES):
            node = Node(number, ports[:NODES], ports[NODES + number], f"{directory}/{number}")
            Path(node.directory).mkdir()
            for part, of_part in pids.items():
                of_part.append(running.enter_context(_process(part, node)).pid)
        for port in ports[NODES:]:
            wait_for(port)
        yield tuple(("127.0.0.1", port) for port in ports[NODES:]), pids


@contextmanager
def _process(part: str, node: Node) -> Iterator[subprocess.Popen[bytes]]:
    command = [*PYTHON_M, "raftkv.bench.measures.skeleton", part]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:  # noqa: S603 -- our own command
        try:
            if process.stdin is not None:
                process.stdin.write(msgspec.json.encode(node) + b"\n")
                process.stdin.flush()
            yield process
        finally:
            process.kill()


def figures(connections: int, pairs: Sequence[Pair]) -> list[Figure]:
    """The medians of both, beside each other."""
    found = []
    for name, runs in (
        ("raftkv", [pair.raftkv for pair in pairs]),
        ("skeleton", [pair.skeleton for pair in pairs]),
    ):
        at = f"{connections} connections, {name}"
        found += [
            Figure(f"{at}: requests per second", median(r.requests_per_s for r in runs)),
            Figure(f"{at}: latency, median", median(r.latency.p50_s or 0.0 for r in runs), "s"),
            Figure(f"{at}: latency, p99", median(r.latency.p99_s or 0.0 for r in runs), "s"),
        ]
        found += [
            Figure(
                f"{at}: processor time of a request, {part}",
                median(run.servers[part].us_per_request or 0.0 for run in runs),
                "us",
            )
            for part in ("engine", "worker")
        ]
        found.append(Figure(f"{at}: requests failed", sum(r.failed for r in runs), "", 0))
    return found
