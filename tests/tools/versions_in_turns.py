"""What does a change cost? ``python tests/tools/versions_in_turns.py --other RAFTKV``.

Starts a cluster of this checkout and one of another version (RAFTKV is its command, such as
``../before/.venv/bin/raftkv``), loads them in turns, and prints ratios of this one to the other:
processor time of all server processes for a request, which is steady on a busy machine, and
throughput, which is not.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from raftkv.bench.cluster import (
    addresses_of,
    server_processes,
    throwaway_cluster,
    wait_leaders_home,
)
from raftkv.bench.load.filling import fill_keys
from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import LoadResult, run_load
from raftkv.bench.load.workload import KINDS, Kind, Workload
from raftkv.bench.turns import in_turns
from raftkv.testing import LocalCluster
from raftkv.testing.processes import RAFTKV_COMMAND

KEYS = 10_000


def main() -> int:
    """Measure and print; 1 if something failed under the load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", required=True, help="the command of the other version")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["put", "get"])
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    other = str(Path(options.other).absolute())
    failed = 0
    # Python's -m looks into the working directory first: there must be no raftkv in it.
    os.chdir(tempfile.gettempdir())
    with (
        throwaway_cluster(None, shards=4, command=RAFTKV_COMMAND) as ours,
        throwaway_cluster(None, shards=4, command=(other,)) as theirs,
    ):
        for cluster in (ours, theirs):
            wait_leaders_home(cluster)
            fill_keys(addresses_of(cluster.urls), Workload(keys=KEYS))
        _say("| work | connections | processor time (min, median, max) | throughput (median) |")
        _say("| --- | --- | --- | --- |")
        for kind in options.kinds:
            for connections in options.connections:
                pairs = [
                    in_turns(
                        number,
                        lambda: _load(ours, kind, connections, options.seconds),  # noqa: B023 -- called at once
                        lambda: _load(theirs, kind, connections, options.seconds),  # noqa: B023 -- called at once
                    )
                    for number in range(options.pairs)
                ]
                failed += sum(result.failed for pair in pairs for result in pair)
                _say(_row(kind, connections, pairs))
    if failed:
        _say(f"{failed} requests failed")
    return int(failed > 0)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _load(cluster: LocalCluster, kind: Kind, connections: int, seconds: float) -> LoadResult:
    load = Load(
        addresses_of(cluster.urls),
        connections=connections,
        seconds=seconds,
        warmup_s=0.5,
        workload=Workload(kind, keys=KEYS),
    )
    return run_load(load, servers=server_processes(cluster))


def _cpu_us(result: LoadResult) -> float:
    return sum(cost.us_per_request or 0.0 for cost in result.servers.values())


def _row(kind: str, connections: int, pairs: Sequence[tuple[LoadResult, LoadResult]]) -> str:
    cpu = sorted(_cpu_us(ours) / _cpu_us(theirs) for ours, theirs in pairs)
    rate = statistics.median(a.operations_per_s / b.operations_per_s for a, b in pairs)
    middle = statistics.median(cpu)
    return f"| {kind} | {connections} | {cpu[0]:.3f}, {middle:.3f}, {cpu[-1]:.3f} | {rate:.3f} |"


if __name__ == "__main__":
    sys.exit(main())
