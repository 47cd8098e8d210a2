"""How throughput, memory and the cost of an operation change as a cluster grows in one direction.

The cost of an operation, in processor time and bytes of each node, is what a cluster on many
machines can be computed from; docs/performance.md does.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

from raftkv.bench.cluster import (
    NODES,
    addresses_of,
    server_processes,
    throwaway_cluster,
    wait_caught_up,
    wait_leaders_home,
)
from raftkv.bench.load.filling import fill_keys
from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import LoadResult, Servers, run_load
from raftkv.bench.load.workload import Workload
from raftkv.bench.measure import Setting
from raftkv.bench.processes import resident_bytes, workers_of
from raftkv.bench.report import Figure, Report
from raftkv.testing import LocalCluster

Direction = Literal["shards", "keys", "values", "connections", "lagging"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

SHARDS = (1, 4, 16, 64)
KEYS = (10**3, 10**4, 10**5, 10**6, 10**7)
VALUE_BYTES = (16, 1024, 2**16, 2**20)
CONNECTIONS = (1, 16, 64, 256, 1000)
WARMUP_S = 1.0

_SHARDS = 4
_CONNECTIONS = 64
_KEYS = 10_000
_VALUE_BYTES = 64
_KEYS_OF_LARGE_VALUES = 200


class Plan(msgspec.Struct, frozen=True):
    """What to measure, and for how long each step."""

    only: tuple[Direction, ...] = DIRECTIONS
    seconds: float = 5.0
    keys_max: int = 10**6
    """More keys than this are left away: each takes memory three times on one machine."""
    steps_max: int | None = None
    """Of each direction, from the smallest."""


class Step(msgspec.Struct, frozen=True):
    """One load on a cluster of one size. All costs are of an average node."""

    name: str
    operations_per_s: float
    failed: int
    cpu_us: Mapping[str, float | None]
    """Processor time per operation and node, by kind of process."""
    peer_bytes: float | None
    """Sent to other nodes, per operation and node; None without ``ss``."""
    disk_bytes: float | None
    """Handed to the disk, per operation and node; 0 in a file system in memory."""
    memory_bytes: float
    """Resident in a node's processes; what processes share is counted in each."""
    caught_up_s: float | None = None
    """How long a node that had been stopped took to be level again."""

    def figures(self) -> list[Figure]:
        """The rows of the table."""
        cpu = [
            Figure(f"{self.name}: CPU of {kind}, per put and node", us, "us")
            for kind, us in self.cpu_us.items()
        ]
        rows = [
            Figure(f"{self.name}: puts/s", self.operations_per_s),
            *cpu,
            Figure(f"{self.name}: sent to peers, per put and node", self.peer_bytes, "bytes"),
            Figure(f"{self.name}: written to disk, per put and node", self.disk_bytes, "bytes"),
            Figure(f"{self.name}: memory of a node", self.memory_bytes / 2**20, "MiB"),
        ]
        if self.caught_up_s is not None:
            rows.append(Figure(f"{self.name}: until level again", self.caught_up_s, "s"))
        return rows


class Usage(msgspec.Struct, frozen=True):
    """Bytes that all nodes together have sent to each other and given to the disk so far."""

    peer_bytes: int | None
    disk_bytes: int

    @classmethod
    def now(cls, servers: Servers) -> "Usage":
        """Look."""
        engines = servers["engine"]
        return cls(_sent_between(engines), sum(map(_disk_bytes, engines)))


def run(plan: Plan, setting: Setting) -> Report:
    """Measure every step of every direction chosen, each on a cluster of its own."""
    steps = []
    for direction in plan.only:
        for size in sizes(direction, plan):
            setting.progress(f"{direction}: {size}")
            steps.append(_step(direction, size, plan.seconds, setting.parent))
    per_key = bytes_per_key(
        {int(s.name.split()[1]): s.memory_bytes for s in steps if s.name.startswith("keys ")}
    )
    figures = [figure for step in steps for figure in step.figures()]
    if per_key is not None:
        figures.append(Figure("memory of a node, per key", per_key, "bytes"))
    return setting.report(
        f"growth: puts on {NODES} nodes, {plan.seconds:g} s a step",
        figures,
        details={"steps": steps},
    )


def sizes(direction: Direction, plan: Plan) -> Sequence[int]:
    """The steps of a direction."""
    every: Mapping[Direction, Iterable[int]] = {
        "shards": SHARDS,
        "keys": (keys for keys in KEYS if keys <= plan.keys_max),
        "values": VALUE_BYTES,
        "connections": CONNECTIONS,
        "lagging": (1,),
    }
    return tuple(every[direction])[: plan.steps_max]


def bytes_per_key(memory_bytes: Mapping[int, float]) -> float | None:
    """The slope between the fewest and the most keys; None if there is only one step."""
    if len(memory_bytes) < 2:  # noqa: PLR2004 -- a slope has two ends
        return None
    fewest, most = min(memory_bytes), max(memory_bytes)
    return (memory_bytes[most] - memory_bytes[fewest]) / (most - fewest)


def _step(direction: Direction, size: int, seconds: float, parent: Path | None) -> Step:
    value_bytes = size if direction == "values" else _VALUE_BYTES
    keys = size if direction == "keys" else _KEYS
    if direction == "values":
        keys = _KEYS_OF_LARGE_VALUES
    load = Load(
        (),
        connections=size if direction == "connections" else _CONNECTIONS,
        seconds=seconds,
        warmup_s=WARMUP_S,
        workload=Workload(keys=keys, value_bytes=value_bytes),
    )
    shards = size if direction == "shards" else _SHARDS
    with throwaway_cluster(parent, shards=shards) as cluster:
        wait_leaders_home(cluster)
        load = msgspec.structs.replace(load, addresses=addresses_of(cluster.urls))
        if direction == "keys":
            fill_keys(load.addresses, load.workload)
        if direction == "lagging":
            return _lagging(cluster, load)
        return _measured(f"{direction} {size}", load, server_processes(cluster))


def _lagging(cluster: LocalCluster, load: Load) -> Step:
    """The load while one node is stopped, and how long that one takes to be level again."""
    absent, *present = cluster.names
    cluster.stop_node(absent)
    urls = [cluster.node(name).url for name in present]
    servers = _processes_of(cluster, present)
    load = msgspec.structs.replace(load, addresses=addresses_of(urls))
    step = _measured("one node stopped", load, servers)
    began = time.monotonic()
    cluster.start_node(absent)
    wait_caught_up(cluster)
    return msgspec.structs.replace(step, caught_up_s=time.monotonic() - began)


def _processes_of(cluster: LocalCluster, names: Sequence[str]) -> Servers:
    engines = [cluster.pid(name) for name in names]
    return {"engine": engines, "worker": [pid for engine in engines for pid in workers_of(engine)]}


def _measured(name: str, load: Load, servers: Servers) -> Step:
    before = Usage.now(servers)
    result = run_load(load, servers=servers)
    after = Usage.now(servers)
    memory = sum(resident_bytes(pid) for pids in servers.values() for pid in pids)
    return step_of(name, result, (before, after), memory, nodes=len(servers["engine"]))


def step_of(
    name: str, result: LoadResult, usage: tuple[Usage, Usage], memory_bytes: int, *, nodes: int
) -> Step:
    """Put a measured load in terms of one operation on one node.

    Bytes are counted over warm-up, measured time and drain together, so they are divided by the
    operations of all of it, taken to come at the measured rate.
    """
    before, after = usage
    operations = result.operations_per_s * (result.seconds + WARMUP_S)

    def share(total: float | None) -> float | None:
        return None if total is None or not operations else total / operations / nodes

    sent = None
    if before.peer_bytes is not None and after.peer_bytes is not None:
        sent = after.peer_bytes - before.peer_bytes
    requests = result.requests_per_s
    return Step(
        name=name,
        operations_per_s=result.operations_per_s,
        failed=result.failed,
        cpu_us={
            kind: cost.cores * 1e6 / requests / nodes if requests else None
            for kind, cost in result.servers.items()
        },
        peer_bytes=share(sent),
        disk_bytes=share(after.disk_bytes - before.disk_bytes),
        memory_bytes=memory_bytes / nodes,
    )


def _disk_bytes(pid: int) -> int:
    """What a process has given to the disk, in whole pages."""
    fields = (Path("/proc") / str(pid) / "io").read_text()
    return int(re.findall(r"^write_bytes: (\d+)", fields, re.MULTILINE)[0])


def _sent_between(engines: Sequence[int]) -> int | None:
    """Bytes sent on the TCP connections of the engines, which are to each other only."""
    tool = shutil.which("ss")
    if tool is None:
        return None
    command = [tool, "-tniHOp"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 -- no input in it
    return sent_bytes(found, engines)


def sent_bytes(sockets: str, pids: Sequence[int]) -> int:
    """Add up ``bytes_sent`` of these processes' sockets, one a line as ``ss -tniHOp`` has them."""
    owners = tuple(f"pid={pid}," for pid in pids)
    return sum(
        int(number)
        for line in sockets.splitlines()
        if any(owner in line for owner in owners)
        for number in re.findall(r"bytes_sent:(\d+)", line)
    )
