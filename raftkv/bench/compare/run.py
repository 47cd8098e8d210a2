"""``raftkv bench compare``: the same load on raftkv and on its peers, in turns, as ratios.

Both clusters run the whole time and one of them is loaded at a time. Starting the loaded one anew
for every run, or stopping the other by SIGSTOP, would measure elections and cold caches; what the
idle one costs meanwhile is measured instead and said. Runs alternate (a pair is one of each, and
every second pair begins with the peer), so that a machine that becomes slower is unfair to neither.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from raftkv.bench.compare.rows import HTTP_ROWS, Compared, HttpRow, Reading, compare
from raftkv.bench.compare.stores import HTTP_PEERS, Store, raftkv_store
from raftkv.bench.filling import fill_keys
from raftkv.bench.http_load import Load
from raftkv.bench.run_load import LoadResult, OnProgress, run_load
from raftkv.bench.workload import Workload

KEYS = 10_000


class Plan(msgspec.Struct, frozen=True):
    """What is compared, and how long."""

    peers: tuple[str, ...]
    rows: tuple[str, ...]
    pairs: int
    seconds: float
    warmup_s: float
    spread: str = "all"

    def http_rows(self) -> list[HttpRow]:
        """The rows that the generator makes."""
        return [row for row in HTTP_ROWS if row.group in self.rows]


class Comparison(msgspec.Struct, frozen=True):
    """raftkv beside one peer."""

    peer: str
    compared: list[Compared]
    readings: dict[str, list[tuple[Reading, Reading]]]
    """Of each row its pairs: ours, theirs."""


Steps = Callable[[str], OnProgress]
"""Is told what runs now, and returns who is told how far it is."""


def run(plan: Plan, parent: Path | None, steps: Steps) -> list[Comparison]:
    """Compare with each peer, one after the other."""
    return [_against(peer, plan, parent, steps) for peer in plan.peers]


def _against(peer: str, plan: Plan, parent: Path | None, steps: Steps) -> Comparison:
    readings: dict[str, list[tuple[Reading, Reading]]] = {}
    compared: list[Compared] = []
    with tempfile.TemporaryDirectory(prefix="raftkv-compare-", dir=parent) as directory:
        rows = plan.http_rows()
        if rows:
            here = Path(directory)
            with raftkv_store(here) as ours, HTTP_PEERS[peer](here) as theirs:
                for store in (ours, theirs):
                    fill_keys(store.addresses, Workload(keys=KEYS), store.dialect)
                for row in rows:
                    readings[row.name] = _http_pairs(row, ours, theirs, plan, steps)
                    compared += compare(row.name, row.limits, readings[row.name])
    return Comparison(peer, compared, readings)


def _http_pairs(
    row: HttpRow, ours: Store, theirs: Store, plan: Plan, steps: Steps
) -> list[tuple[Reading, Reading]]:
    pairs = []
    for number in range(plan.pairs):
        order: Sequence[Store] = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        found: dict[str, Reading] = {}
        for store in order:
            idle = theirs if store is ours else ours
            progress = steps(f"{row.name}: {store.name}, pair {number + 1}")
            found[store.name] = _http_reading(row, store, idle, plan, progress)
        pairs.append((found[ours.name], found[theirs.name]))
    return pairs


def _http_reading(
    row: HttpRow, store: Store, idle: Store, plan: Plan, progress: OnProgress
) -> Reading:
    store.settle()
    load = Load(
        store.addresses if plan.spread == "all" else store.addresses[:1],
        row.connections,
        plan.seconds,
        workload=Workload(row.kind, KEYS),
        dialect=store.dialect,
        warmup_s=plan.warmup_s,
    )
    idle_pids = [pid for pids in idle.servers.values() for pid in pids]
    servers = {**store.servers, f"{idle.name}, idle": idle_pids}
    return _reading(run_load(load, servers=servers, progress=progress))


def _reading(result: LoadResult) -> Reading:
    latency = result.latency
    values = {
        "throughput": result.operations_per_s,
        "median": latency.p50_s,
        "p99": latency.p99_s,
    }
    costs = {**result.servers, "generator": result.generator}
    return Reading(
        {name: value for name, value in values.items() if value is not None},
        result.failed,
        {name: cost.cores for name, cost in costs.items()},
    )
