"""``raftkv bench compare``: the same work for raftkv and for its peers, in turns, as ratios.

Both clusters run the whole time and one of them is loaded at a time. Starting the loaded one anew
for every run, or stopping the other by SIGSTOP, would measure elections and cold caches; what the
idle one costs meanwhile is measured instead and said. Runs alternate (a pair is one of each, and
every second pair begins with the peer), so that a machine that becomes slower is unfair to neither.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from raftkv.bench.compare import lifecycle
from raftkv.bench.compare.check_perf import CheckPerf
from raftkv.bench.compare.rows import (
    CLIENT_LIMITS,
    FAILOVER_LIMITS,
    GROUPS_OF_PEER,
    LOAD_ROWS,
    START_LIMITS,
    Compared,
    Limit,
    LoadRow,
    Reading,
    compare,
)
from raftkv.bench.compare.stores import PEERS, Store, raftkv_store
from raftkv.bench.load.dialects import DIALECTS
from raftkv.bench.load.generator import Load
from raftkv.bench.load.run_load import LoadResult, OnProgress, run_load
from raftkv.bench.load.workload import Workload

KEYS = 10_000
KEYS_WITHOUT_BATCHES = 1_000
"""For both, where the peer must be filled one key at a time."""
CLIENT_THREADS = 64
CLIENT_VALUE_BYTES = 1024

Pairs = list[tuple[Reading, Reading]]
Steps = Callable[[str], OnProgress]
"""Is told what runs now, and returns who is told how far it is."""


class Plan(msgspec.Struct, frozen=True):
    """What is compared, and how long."""

    peers: tuple[str, ...]
    rows: tuple[str, ...]
    pairs: int
    seconds: float
    warmup_s: float
    spread: str = "all"
    client_processes: int = 1
    kills: int = 20

    def load_rows(self, peer: str) -> list[LoadRow]:
        """The rows of this peer that a generator makes."""
        return [row for row in LOAD_ROWS if self.has(peer, row.group)]

    def has(self, peer: str, group: str) -> bool:
        """Whether this is compared with this peer."""
        return group in self.rows and group in GROUPS_OF_PEER[peer]

    def steps(self) -> int:
        """How many runs there are, of all kinds."""
        count = 0
        for peer in self.peers:
            per_pair = len(self.load_rows(peer)) + sum(
                self.has(peer, group) for group in ("client", "start")
            )
            count += 2 * (self.pairs * per_pair + self.has(peer, "failover") * self.kills)
        return count


class Comparison(msgspec.Struct, frozen=True):
    """raftkv beside one peer."""

    peer: str
    compared: list[Compared]
    readings: dict[str, Pairs]
    """Of each row its pairs: ours, theirs."""


def run(plan: Plan, parent: Path | None, steps: Steps) -> Iterator[Comparison]:
    """Compare with each peer, one after the other."""
    for peer in plan.peers:
        with tempfile.TemporaryDirectory(prefix="raftkv-compare-", dir=parent) as directory:
            yield _Against(peer, plan, Path(directory), steps).run()


class _Against:
    """raftkv beside one peer, while it is measured."""

    def __init__(self, peer: str, plan: Plan, directory: Path, steps: Steps) -> None:
        self._peer = peer
        self._plan = plan
        self._directory = directory
        self._steps = steps
        self._keys = KEYS
        self._readings: dict[str, Pairs] = {}
        self._compared: list[Compared] = []

    def run(self) -> Comparison:
        plan, peer = self._plan, self._peer
        if plan.load_rows(peer) or plan.has(peer, "client"):
            with raftkv_store(self._directory) as ours, PEERS[peer](self._directory) as theirs:
                self._loads(ours, theirs)
        if plan.has(peer, "failover"):
            self._failover()
        if plan.has(peer, "start"):
            self._start()
        return Comparison(peer, self._compared, self._readings)

    def _add(self, name: str, limits: Sequence[Limit], pairs: Pairs) -> None:
        self._readings[name] = pairs
        self._compared += compare(name, limits if self._peer == "etcd" else (), pairs)

    def _alternate(
        self,
        name: str,
        times: int,
        ours: Callable[[OnProgress], Reading],
        theirs: Callable[[OnProgress], Reading],
    ) -> Pairs:
        pairs = []
        for number in range(times):
            what = f"{name}, {number + 1} of {times}"
            first = {True: ("raftkv", ours), False: (self._peer, theirs)}
            found = {}
            for is_ours in (True, False) if number % 2 == 0 else (False, True):
                store, measure = first[is_ours]
                found[is_ours] = measure(self._steps(f"{what}: {store}"))
            pairs.append((found[True], found[False]))
        return pairs

    # --- under load -------------------------------------------------------------------------

    def _loads(self, ours: Store, theirs: Store) -> None:
        plan = self._plan
        if not DIALECTS[theirs.dialect].has_batches:
            self._keys = KEYS_WITHOUT_BATCHES
        for store in (ours, theirs):
            store.fill(Workload(keys=self._keys))
        for row in map(self._promising_alike, plan.load_rows(self._peer)):
            pairs = self._alternate(
                row.name,
                plan.pairs,
                lambda progress, row=row: self._load(row, ours, theirs, progress),  # type: ignore[misc]
                lambda progress, row=row: self._load(row, theirs, ours, progress),  # type: ignore[misc]
            )
            self._add(row.name, row.limits, pairs)
        if plan.has(self._peer, "client"):
            self._client(ours, theirs)

    def _promising_alike(self, row: LoadRow) -> LoadRow:
        """The row with reads that promise no more than the peer's do."""
        if self._peer != "pysyncobj" or row.kind != "get":
            return row
        return msgspec.structs.replace(row, name=f"stale {row.name}", kind="get-stale")

    def _load(self, row: LoadRow, store: Store, idle: Store, progress: OnProgress) -> Reading:
        plan = self._plan
        load = Load(
            store.addresses if plan.spread == "all" else store.addresses[:1],
            row.connections,
            plan.seconds,
            workload=Workload(row.kind, self._keys),
            dialect=store.dialect,
            warmup_s=plan.warmup_s,
            carrier=store.carrier,
        )
        return _measured(load, store, idle, progress)

    def _client(self, ours: Store, theirs: Store) -> None:
        plan = self._plan
        native = CheckPerf([f"{host}:{port}" for host, port in theirs.addresses])
        load = Load(
            ours.addresses if plan.spread == "all" else ours.addresses[:1],
            CLIENT_THREADS * plan.client_processes,
            plan.seconds,
            workload=Workload("put", KEYS, value_bytes=CLIENT_VALUE_BYTES),
            warmup_s=plan.warmup_s,
            carrier="client",
        )
        name = f"Python client, {load.connections} threads"
        pairs = self._alternate(
            name,
            plan.pairs,
            lambda progress: _measured(load, ours, theirs, progress, plan.client_processes),
            lambda _: Reading({"throughput": native.writes_per_s()}),
        )
        self._add(name, CLIENT_LIMITS, pairs)

    # --- from the first moment on -----------------------------------------------------------

    def _failover(self) -> None:
        name = "kill -9 of a leader"
        directory = self._directory / "kills"  # new clusters: the loaded ones have left theirs
        directory.mkdir()
        with (
            contextlib.closing(lifecycle.raftkv_kills(directory)) as ours,
            contextlib.closing(lifecycle.etcd_kills(directory)) as theirs,
        ):
            kills = self._alternate(
                name,
                self._plan.kills,
                lambda _: Reading({"seconds": next(ours)}),
                lambda _: Reading({"seconds": next(theirs)}),
            )
        # One pair: the medians and the worst of all kills, as single kills are no pairs.
        both = [
            Reading(lifecycle.summary([pair[side].values["seconds"] for pair in kills]))
            for side in (0, 1)
        ]
        self._add(name, FAILOVER_LIMITS, [(both[0], both[1])])
        self._readings[name] = kills

    def _start(self) -> None:
        name = "start of three nodes"
        pairs = self._alternate(
            name,
            self._plan.pairs,
            lambda _: Reading({"first write": lifecycle.raftkv_start(self._directory)}),
            lambda _: Reading({"first write": lifecycle.etcd_start(self._directory)}),
        )
        self._add(name, START_LIMITS, pairs)


def _measured(
    load: Load, store: Store, idle: Store, progress: OnProgress, processes: int = 1
) -> Reading:
    store.settle()
    idle_pids = [pid for pids in idle.processes().values() for pid in pids]
    servers = {**store.processes(), f"{idle.name}, idle": idle_pids}
    return reading_of(run_load(load, processes=processes, servers=servers, progress=progress))


def reading_of(result: LoadResult) -> Reading:
    """What is compared of a load."""
    values = {
        "throughput": result.operations_per_s,
        "median": result.latency.p50_s,
        "p99": result.latency.p99_s,
    }
    costs = {**result.servers, "generator": result.generator}
    return Reading(
        {name: value for name, value in values.items() if value is not None},
        result.failed,
        {name: cost.cores for name, cost in costs.items()},
    )
