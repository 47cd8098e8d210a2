"""A normal client beside clients that behave badly: what do others notice of each abuse?

The normal client asks at a steady pace on connections that it keeps; a visitor comes again and
again on a new connection, as a load balancer and a scraper do. Both are measured alone before and
after each abuse, because a machine that is busy with something else changes from minute to minute.
All abuse goes to one node, as one user's would who has its name; the normal client asks all nodes.
"""

import contextlib
import http.client
import resource
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType, TracebackType
from typing import Self

import msgspec
from rich.table import Table

from raftkv.bench.cluster import (
    addresses_of,
    server_processes,
    throwaway_cluster,
    wait_leaders_home,
)
from raftkv.bench.load.filling import fill_keys
from raftkv.bench.load.generator import Load, Progress
from raftkv.bench.load.run_load import generate
from raftkv.bench.load.summary import Summary, summarize
from raftkv.bench.load.tally import Tally, floats, is_accepted
from raftkv.bench.load.workload import Workload
from raftkv.bench.measure import Setting
from raftkv.bench.measures.abuses import (
    ABUSES,
    TAG,
    TOO_MANY,
    WIDE_PREFIX,
    AbuseProcess,
    AbuseTarget,
    Order,
)
from raftkv.bench.processes import command_of, peak_resident_bytes, reset_peak, resident_bytes
from raftkv.bench.report import Figure, Report, shown
from raftkv.client import RaftkvError
from raftkv.testing import ClusterError, LocalCluster
from raftkv.testing.layout import HOST
from raftkv.testing.local_cluster import POLL_S

SHARDS = 32
WIDE_VALUES = 64
WIDE_VALUE_BYTES = 900_000

RATE_PER_S = 150.0
CONNECTIONS = 150
"""As many as there are requests in a second, so that only a longer silence leaves some unsent."""

NORMAL = Workload("a", keys=1000, value_bytes=64)
WARM_UP_S = 0.5
"""Before each run; abuse begins in it."""

VISIT_EVERY_S = 0.25
VISIT_TIMEOUT_S = 2.0

RATIO_MAX = 2.0

GROWTH_BYTES_MAX: Mapping[str, int] = MappingProxyType(
    {"worker": 256 * 2**20, "engine": 512 * 2**20}
)
"""How much more than in the beginning a process may hold: a worker its bodies (docs/http-api.md,
limits); an engine the large answers and calls that wait for its worker and its peers, and the
writes that wait for shards."""

PLACES_MAX = 1_000
"""Connections of a node; fewer where this machine has no descriptors for more than that."""

_MIB = 2**20
_CALM_TIMEOUT_S = 30.0
_DESCRIPTORS_KEPT = 500
_ABUSE_SPARE_S = 30.0


class Normal(msgspec.Struct, frozen=True):
    """What the normal client and the visitor were told in one stretch of time."""

    answered: Summary
    errors: dict[str, int]
    """How many got what instead of an answer, by status, or by the visitor's error."""
    latencies: bytes = b""
    visits: int = 0

    @property
    def failed(self) -> int:
        """Errors of all kinds."""
        return sum(self.errors.values())


class Memory(msgspec.Struct, frozen=True):
    """The most that a process of a kind held."""

    peak_bytes: int
    bytes_max: int


class Found(msgspec.Struct, frozen=True):
    """One abuse, and what the others were like beside it."""

    abuse: str
    alone: tuple[Normal, Normal]
    """Before it, and after it."""
    beside: Normal
    memory: dict[str, Memory]
    """By what it is of: engines, workers."""
    terms_changed: int
    processes_ended: int
    calm_again_s: float | None
    """Until all were ready and leaders where they belong; None: not in half a minute."""
    deeds: dict[str, int]
    """What the abuser was answered."""

    @property
    def p99_alone_s(self) -> float | None:
        """Before and after together."""
        return p99_of(self.alone)

    @property
    def ratio(self) -> float | None:
        """The p99 beside the abuse, in terms of that alone."""
        beside, alone = self.beside.answered.p99_s, self.p99_alone_s
        return beside / alone if beside is not None and alone else None

    def figures(self) -> list[Figure]:
        """All that has a target."""
        memory = [
            Figure(f"memory of {kind}s", of.peak_bytes / _MIB, "MiB", of.bytes_max / _MIB)
            for kind, of in self.memory.items()
        ]
        return [
            Figure("errors", self.beside.failed, "", 0),
            Figure("p99 beside : alone", self.ratio, "", RATIO_MAX),
            *memory,
            Figure("terms changed", self.terms_changed, "", 0),
            Figure("processes ended", self.processes_ended, "", 0),
            Figure("calm again", self.calm_again_s, "s", _CALM_TIMEOUT_S),
        ]

    @property
    def missed(self) -> list[Figure]:
        """Targets that were missed."""
        return [figure for figure in self.figures() if figure.met is False]


def run(names: Sequence[str], seconds: float, setting: Setting) -> Report:
    """Try the abuses of these names in turns, ``seconds`` each, and make the report."""
    places = _places()
    with throwaway_cluster(
        setting.parent, shards=SHARDS, options={"http": {"connections_max": places}}
    ) as cluster:
        setting.progress(
            "waiting until every shard is led by its preferred node, putting large values"
        )
        wait_leaders_home(cluster)
        target = prepare(cluster, places)
        bench = Bench(cluster, target, seconds)
        bench.normal(WARM_UP_S)  # what is made at the first request is made now
        alone, found = [bench.normal(seconds)], []
        for name in names:
            setting.progress(f"{name}: {(ABUSES[name].__doc__ or '').splitlines()[0]}")
            found.append(bench.abused(name, alone[-1]))
            alone.append(found[-1].alone[1])
    return setting.report(
        f"abuse: beside {RATE_PER_S:g} requests/s on {CONNECTIONS} connections, {seconds:g} s each",
        [
            msgspec.structs.replace(figure, name=f"{one.abuse}: {figure.name}")
            for one in found
            for figure in one.figures()
        ],
        notes=notes(found, alone, places),
        details={"found": found},
    )


def p99_of(normals: Sequence[Normal]) -> float | None:
    """Of all of them together."""
    return summarize([s for normal in normals for s in floats(normal.latencies)]).p99_s


def _places() -> int:
    """Connections that one node may take, so that the abuser has descriptors for more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return PLACES_MAX
    return max(100, min(PLACES_MAX, hard - TOO_MANY - _DESCRIPTORS_KEPT))


def prepare(cluster: LocalCluster, places: int) -> AbuseTarget:
    """Put what is read, and find out what is led elsewhere than at the first node."""
    addresses = addresses_of(cluster.urls)
    fill_keys(addresses, NORMAL)
    abused = cluster.node(cluster.names[0])
    value = secrets.token_bytes(WIDE_VALUE_BYTES)
    keys = [f"{WIDE_PREFIX}{number}" for number in range(WIDE_VALUES)]
    with cluster.client(timeout_s=60.0) as client:
        for key in keys:
            client.put(key, value)
        far = [key for key in keys if client.explain(key)["leader"] != abused.name]
    return AbuseTarget(addresses[0], (HOST, abused.peer_port), tuple(far), places)


class Bench:
    """Measures the normal client and the processes of one cluster."""

    def __init__(self, cluster: LocalCluster, target: AbuseTarget, seconds: float) -> None:
        self._cluster = cluster
        self._target = target
        self._seconds = seconds
        self._load = Load(
            addresses_of(cluster.urls),
            CONNECTIONS,
            seconds,
            rate=RATE_PER_S,
            workload=NORMAL,
            warmup_s=WARM_UP_S,
        )
        processes = self._processes()
        self._bytes_max = {
            kind: growth + max(resident_bytes(pid) for pid in processes if processes[pid] == kind)
            for kind, growth in GROWTH_BYTES_MAX.items()
        }

    def normal(self, seconds: float, begun: Callable[[], None] = lambda: None) -> Normal:
        """Be the normal client and the visitor for so long; ``begun`` is called when they are."""

        def tell(progress: Progress) -> None:
            if progress.answered:
                begun()

        load = msgspec.structs.replace(self._load, seconds=seconds)
        with Visitor(self._target.http) as visitor:
            tally = generate(load, 1, tell)
        return normal_of(tally, visitor)

    def abused(self, name: str, before_it: Normal) -> Found:
        """The same beside an abuse and after it, and what the processes were like."""
        before, terms = self._processes(), self._terms()
        for pid in before:
            reset_peak(pid)
        connected = threading.Event()
        order = Order(name, self._target, self._seconds + _ABUSE_SPARE_S)
        with AbuseProcess(order) as abuser, ThreadPoolExecutor(1) as pool:
            # Who was there first keeps its connections; the visitor comes later.
            normal = pool.submit(self.normal, self._seconds, connected.set)
            normal.add_done_callback(lambda _: connected.set())
            connected.wait()
            abuser.begin()
            beside = normal.result()
            deeds = abuser.end()
        now = self._processes()
        memory = {
            kind: Memory(
                max((peak_resident_bytes(pid) for pid in now if now[pid] == kind), default=0),
                bytes_max,
            )
            for kind, bytes_max in self._bytes_max.items()
        }
        ended = len(before.keys() - now.keys())
        self._start_again()
        calm_again_s = self._settle()
        # A cluster that does not even tell its terms has not kept them.
        terms_after = {} if calm_again_s is None else self._terms()
        changed = sum(terms_after.get(shard) != term for shard, term in terms.items())
        return Found(
            name,
            (before_it, self.normal(self._seconds)),
            beside,
            memory,
            changed,
            ended,
            calm_again_s,
            deeds,
        )

    def _processes(self) -> dict[int, str]:
        """Those that live, and what each is."""
        return {
            pid: kind
            for kind, pids in server_processes(self._cluster).items()
            for pid in pids
            if command_of(pid)  # empty once it has ended
        }

    def _start_again(self) -> None:
        """Start nodes that have ended: the next abuse is to find all of them."""
        for name in self._cluster.names:
            if not command_of(self._cluster.pid(name)):
                self._cluster.restart(name, wait=False)

    def _terms(self) -> dict[int, int | None]:
        return {shard: row["term"] for shard, row in self._cluster.shards().items()}

    def _settle(self) -> float | None:
        """Wait until all are ready and leaders where they were; None if they are not in time."""
        began = time.monotonic()
        while time.monotonic() < began + _CALM_TIMEOUT_S:
            with contextlib.suppress(ClusterError, RaftkvError):
                self._cluster.wait_ready(_CALM_TIMEOUT_S)
                wait_leaders_home(self._cluster, _CALM_TIMEOUT_S)
                return time.monotonic() - began
            time.sleep(POLL_S)
        return None


def normal_of(tally: Tally, visitor: "Visitor") -> Normal:
    """What both were told."""
    errors = {s: count for s, count in tally.statuses().items() if not is_accepted(s)}
    latencies = tally.accepted()
    return Normal(
        summarize(latencies), {**errors, **visitor.errors}, latencies.tobytes(), visitor.visits
    )


class Visitor:
    """Comes on a new connection again and again: health, metrics, a write, a read."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.visits = 0
        self.errors: dict[str, int] = {}
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="visitor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(VISIT_EVERY_S):
            self.visits += 1
            for method, path, headers in self._asked():
                told = self._ask(method, path, headers)
                if told is not None:
                    self.errors[told] = self.errors.get(told, 0) + 1

    def _asked(self) -> list[tuple[str, str, dict[str, str]]]:
        key, born = f"/v1/kv/{TAG}/visitor", time.time_ns() // 1000
        session = f"{secrets.token_hex(8)};1;1;{born}"
        return [
            ("GET", "/readyz", {}),
            ("GET", "/metrics", {}),
            ("PUT", key, {"raftkv-session": session}),
            ("PUT", key, {"idempotency-key": secrets.token_hex(8)}),
            ("GET", key, {}),
        ]

    def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> str | None:
        """Ask once; what went wrong, if anything."""
        connection = http.client.HTTPConnection(*self._address, timeout=VISIT_TIMEOUT_S)
        body = b"a visitor" if method == "PUT" else None
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            return f"{method} {path}: {type(error).__name__}"
        finally:
            connection.close()
        return None if is_accepted(str(answer.status)) else f"{method} {path}: {answer.status}"


# --- what is said of it -------------------------------------------------------------------------


def table_of(found: Sequence[Found]) -> Table:
    """One line for each abuse."""
    table = Table()
    table.add_column("abuse", no_wrap=True)
    for name in ("errors", "p99 alone", "beside", "ratio", "workers, MiB", "engines, MiB", "terms"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in found:
        table.add_row(
            one.abuse,
            f"{one.beside.failed:,}",
            shown(one.p99_alone_s, "s"),
            shown(one.beside.answered.p99_s, "s"),
            "-" if one.ratio is None else f"{one.ratio:.1f}",
            *(_memory(one.memory[kind]) for kind in GROWTH_BYTES_MAX),
            str(one.terms_changed),
            _verdict(one),
        )
    return table


def _memory(of: Memory) -> str:
    return f"{of.peak_bytes / _MIB:,.0f} of {of.bytes_max / _MIB:,.0f}"


def _verdict(one: Found) -> str:
    if not one.missed:
        return "[green]met[/green]"
    return f"[red]missed:[/red] {', '.join(figure.name for figure in one.missed)}"


def notes(found: Sequence[Found], alone: Sequence[Normal], places: int) -> list[str]:
    """What the table has no room for."""
    targets = (
        f"Targets: no error, p99 at most {RATIO_MAX:g} times that alone, memory below its limit, "
        f"no term changed. Limits: what was held in the beginning, and {_growth()} more. "
        f"Places for connections: {places:,}."
    )
    said = [targets]
    failed = sum(normal.failed for normal in alone)
    if failed:
        said.append(f"Errors while alone, before and after abuses: {failed}: {_summed(alone)}.")
    said += [
        f"{one.abuse}: instead of answers: {_counts(one.beside.errors)}."
        for one in found
        if one.beside.errors
    ]
    return said


def _growth() -> str:
    return ", ".join(f"{of / _MIB:,.0f} MiB for {kind}s" for kind, of in GROWTH_BYTES_MAX.items())


def _summed(normals: Sequence[Normal]) -> str:
    sums: dict[str, int] = {}
    for normal in normals:
        for what, count in normal.errors.items():
            sums[what] = sums.get(what, 0) + count
    return _counts(sums)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} x {what}" for what, count in sorted(counts.items())) or "nothing"
