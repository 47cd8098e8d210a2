"""Runs a load from processes of its own and says what it was like, and what it cost whom.

:func:`run_load` is what everything that measures throughput is made of::

    load = Load(addresses, connections=64, seconds=8.0, warmup_s=2.0, workload=Workload("get"))
    result = run_load(load, servers=server_processes(cluster))
    result.operations_per_s, result.latency.p99_s, result.servers["engine"].us_per_request
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import msgspec

from raftkv.bench.load.generator import MODULES, Load, Progress, Ready, frame, read_frame
from raftkv.bench.load.summary import percentile
from raftkv.bench.load.tally import Tally, Window, floats, is_accepted, merged
from raftkv.bench.processes import cpu_seconds
from raftkv.interpreter import PYTHON_M

Servers = Mapping[str, Sequence[int]]
"""Process ids of the servers by what they are: ``{"engine": [71, 72, 73], "worker": [...]}``."""

OnProgress = Callable[[Progress], None]


_READY_S = 60.0
_TOLD_S = 0.05
"""Until all generators know when to begin."""


class LoadError(Exception):
    """A load could not be made; the message says why."""


class Latency(msgspec.Struct, frozen=True):
    """Seconds; all None if nothing was accepted."""

    p50_s: float | None = None
    p90_s: float | None = None
    p99_s: float | None = None
    p999_s: float | None = None
    max_s: float | None = None

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Latency":
        """Nearest ranks."""
        if not samples:
            return cls()
        ordered = sorted(samples)
        p50, p90, p99, p999 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99, 0.999))
        return cls(p50, p90, p99, p999, ordered[-1])


class Cost(msgspec.Struct, frozen=True):
    """Processor time of some processes in the measured time."""

    us_per_request: float | None
    cores: float


class Second(msgspec.Struct, frozen=True):
    """What one second of the measured time was like."""

    accepted: int
    failed: int
    latency: Latency


class LoadResult(msgspec.Struct, frozen=True):
    """What one run of a load was like. Only accepted requests count as throughput."""

    seconds: float
    requests_per_s: float
    operations_per_s: float
    """More than requests if they are batches."""
    failed: int
    """Requests that were refused, lost, not sent or answered with an error."""
    statuses: dict[str, int]
    latency: Latency
    per_second: list[Second]
    generator: Cost
    generator_processes: int
    servers: dict[str, Cost]
    late_s_max: float
    """How late the generator sent a request at most."""
    errors: list[str]
    """Examples."""


def run_load(
    load: Load,
    *,
    processes: int = 1,
    servers: Servers | None = None,
    progress: OnProgress | None = None,
) -> LoadResult:
    """Run ``load`` once and return what it was like.

    Args:
        load: What to send and where; if it reads, ``filling.fill_keys`` has put its keys.
        processes: How many processes make the load. One can send some 40,000 requests a second,
            more take a core from the servers.
        servers: Processes of the servers, whose processor time is measured, too.
        progress: Called several times a second, from other threads.

    Raises:
        LoadError: A generator ended, or could not connect.
    """
    servers = servers or {}
    with _Generators(load, processes, progress) as generators:
        _sleep_until(generators.begin)
        before = _cpu(servers)
        _sleep_until(generators.begin + load.seconds)
        after = _cpu(servers)
        tally = generators.tally()
    used = {kind: after[kind] - before[kind] for kind in servers}
    return _result(load, tally, processes, used)


def generate(load: Load, processes: int, progress: OnProgress | None = None) -> Tally:
    """Make ``load`` from several processes at once, and put together what came of it.

    ``progress`` is called as by :func:`run_load`.
    """
    with _Generators(load, processes, progress) as generators:
        return generators.tally()


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _cpu(servers: Servers) -> dict[str, float]:
    return {kind: sum(map(cpu_seconds, pids)) for kind, pids in servers.items()}


def _result(load: Load, tally: Tally, processes: int, used: Mapping[str, float]) -> LoadResult:
    accepted = tally.accepted()
    answered = max(1, tally.total - tally.count("unsent"))

    def cost(cpu_s: float) -> Cost:
        return Cost(1e6 * cpu_s / answered, cpu_s / load.seconds)

    return LoadResult(
        seconds=load.seconds,
        requests_per_s=len(accepted) / load.seconds,
        operations_per_s=len(accepted) * load.workload.operations / load.seconds,
        failed=tally.total - len(accepted),
        statuses=tally.statuses(),
        latency=Latency.of(accepted),
        per_second=[_second(window) for window in tally.windows],
        generator=cost(tally.cpu_s),
        generator_processes=processes,
        servers={kind: cost(cpu_s) for kind, cpu_s in used.items()},
        late_s_max=tally.late_s_max,
        errors=tally.errors,
    )


def _second(window: Window) -> Second:
    accepted = floats(window.latencies)
    failed = sum(n for status, n in window.statuses.items() if not is_accepted(status))
    return Second(len(accepted), failed, Latency.of(accepted))


# --- the processes that make it -------------------------------------------------------------------


class _Generators:
    """Processes that make the parts of a load; gone when the ``with`` block ends."""

    def __init__(self, load: Load, processes: int, progress: OnProgress | None) -> None:
        self._load = load
        self._parts = list(_split(load, processes))
        self._on_progress = progress
        self._running: list[_Generator] = []
        self.begin = 0.0
        """When measuring begins, by the monotonic clock."""

    def __enter__(self) -> Self:
        try:
            for part in self._parts:
                self._running.append(_Generator(part, self._tell))
            for generator in self._running:
                generator.wait_ready()
            self.begin = time.monotonic() + _TOLD_S + self._load.warmup_s
            for generator in self._running:
                generator.begin(self.begin)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        for generator in self._running:
            generator.close()

    def tally(self) -> Tally:
        """Wait for the end of the load."""
        return merged([generator.tally() for generator in self._running])

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        parts = [generator.progress for generator in self._running]
        self._on_progress(
            Progress(sum(part.answered for part in parts), sum(part.failed for part in parts))
        )


def _split(load: Load, processes: int) -> Iterator[Load]:
    for number in range(processes):
        turn = number % len(load.addresses)
        share, more = divmod(load.connections, processes)
        yield msgspec.structs.replace(
            load,
            addresses=load.addresses[turn:] + load.addresses[:turn],
            connections=max(1, share + (number < more)),
            rate=None if load.rate is None else load.rate / processes,
            seed=load.seed + number,
        )


class _Generator:
    """One process, and a thread that reads what it says."""

    def __init__(self, load: Load, tell: Callable[[], None]) -> None:
        self.progress = Progress()
        self._tell = tell
        self._tally: Tally | None = None
        self._process = subprocess.Popen(  # noqa: S603 -- our own modules
            (*PYTHON_M, MODULES[load.carrier]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self._process.stdin is not None  # noqa: S101 -- asked for above
        assert self._process.stdout is not None  # noqa: S101 -- asked for above
        self._input, self._output = self._process.stdin, self._process.stdout
        self._connected = False
        self._told = threading.Event()
        self._input.write(frame(load))
        self._input.flush()
        self._reader = threading.Thread(target=self._read, name="load-generator", daemon=True)
        self._reader.start()

    def wait_ready(self) -> None:
        """Wait until it is connected.

        Raises:
            LoadError: It ended before, or takes far too long.
        """
        if not self._told.wait(_READY_S):
            raise LoadError(f"a load generator could not begin within {_READY_S:.0f} s")
        if not self._connected:
            self.tally()

    def begin(self, moment: float) -> None:
        """Tell it when measuring begins."""
        self._input.write(frame(moment))
        self._input.close()

    def tally(self) -> Tally:
        """Wait for its end.

        Raises:
            LoadError: It ended without a tally; it has said why on standard error.
        """
        self._reader.join()
        code = self._process.wait()
        if self._tally is None or code != 0:
            raise LoadError(f"a load generator ended with code {code} (see above)")
        return self._tally

    def close(self) -> None:
        """Be gone."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._output.close()
        with contextlib.suppress(BrokenPipeError):  # it ended without reading everything
            self._input.close()

    def _read(self) -> None:
        while data := read_frame(self._output):
            match msgspec.msgpack.decode(data, type=Ready | Progress | Tally):
                case Ready():
                    self._connected = True
                    self._told.set()
                case Progress() as progress:
                    self.progress = progress
                    self._tell()
                case Tally() as tally:
                    self._tally = tally
        self._told.set()  # so that nobody waits for one that has ended
