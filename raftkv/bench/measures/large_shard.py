"""One large shard: what a key costs, what snapshots cost the requests beside them, and restarts."""

import math
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import msgspec

from raftkv.bench.cluster import (
    Options,
    local_facts,
    shard_facts,
    throwaway_cluster,
    wait_caught_up,
    wait_leaders_home,
)
from raftkv.bench.load.paced import PacedWriter, fill, key_of
from raftkv.bench.measure import Setting
from raftkv.bench.measures.probe import GET, PUT, WAKE_UP, Probe, Sample, Window, latencies, within
from raftkv.bench.processes import ForkWatch, peak_resident_bytes, resident_bytes
from raftkv.bench.report import Figure, Report
from raftkv.testing import LocalCluster

SHARD = 0
KEY_BYTES = 16
PROBES_PER_S = 20.0
WRITES_PER_S = 100.0

SNAPSHOT_AFTER_ENTRIES = 3000
"""Of the log, so that at the rates above each replica writes a snapshot about every 20 s."""

SNAPSHOTS_EACH = 2
QUIET_S_MIN = 20.0
PHASE_TIMEOUT_S = 300.0

BEFORE_S, AFTER_S = 0.2, 1.0
"""Around what is watched: forking comes before it, cutting the log and freeing memory after it."""

BYTES_PER_KEY_MAX = 500
STALL_S_MIN = 0.1
STALL_FACTOR = 2.0
RESTART_S_MAX = 30.0

WORST_KEPT = 10

_POLL_S = 0.05
_READY_TIMEOUT_S = 120.0


class Memory(msgspec.Struct, frozen=True):
    """Resident memory of one engine, in bytes."""

    empty: int
    filled: int
    after_snapshots: int = 0
    peak: int = 0

    def per_key(self, keys: int, value_bytes: int) -> float:
        """What a key costs beyond itself and its value."""
        return (self.filled - self.empty) / keys - KEY_BYTES - value_bytes


class LargeShard:
    """The measurement, step by step, on one cluster."""

    def __init__(
        self,
        cluster: LocalCluster,
        keys: int,
        value_bytes: int,
        progress: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._keys = keys
        self._value_bytes = value_bytes
        self._progress = progress
        self.fill_s = 0.0
        self.memory: dict[str, Memory] = {}
        self.written: list[Window] = []
        """When a snapshot was written, by any replica."""
        self.installing = Window(0.0, 0.0)
        """From the start of the follower until the leader's snapshot was installed."""
        self.install_s = 0.0
        self.quiet: list[Window] = []
        self.samples: list[Sample] = []
        self.restart_s: dict[str, float] = {}

    # --- filling ------------------------------------------------------------------------------

    def fill(self) -> None:
        """Load all keys in batches, and weigh the engines before and after."""
        empty = self._resident()
        step = max(1, self._keys // 10)
        told = 0

        def tell(done: int) -> None:
            nonlocal told
            if done // step > told:
                told = done // step
                self._progress(f"{done:,} keys")

        value = os.urandom(self._value_bytes)
        self.fill_s = fill(self._cluster.urls, self._keys, value, progress=tell)
        wait_caught_up(self._cluster)
        with ForkWatch(self._pids()) as forks:
            self._wait_no_snapshot(forks)
        filled = self._resident()
        self.memory = {name: Memory(empty[name], filled[name]) for name in self._cluster.names}

    def _pids(self) -> dict[int, str]:
        return {self._cluster.pid(name): name for name in self._cluster.names}

    def _resident(self) -> dict[str, int]:
        return {name: resident_bytes(pid) for pid, name in self._pids().items()}

    def _wait_no_snapshot(self, forks: ForkWatch) -> None:
        """Wait until no snapshot has been under way for some seconds."""

        def none_lately() -> bool:
            last = max((ended for _, _, ended in forks.intervals()), default=begun)
            return time.monotonic() - last > 3 * AFTER_S

        begun = time.monotonic()
        self._cluster.wait_for(none_lately, "no snapshot is written", PHASE_TIMEOUT_S)

    # --- snapshots beside requests --------------------------------------------------------------

    def snapshots(self) -> None:
        """Probe while snapshots are written, and while one is sent and installed."""
        wait_leaders_home(self._cluster)
        urls = {name: self._cluster.node(name).url for name in self._cluster.names}
        value = os.urandom(self._value_bytes)
        with (
            ForkWatch(self._pids()) as forks,
            Probe(urls, keys=self._keys, value=value, per_s=PROBES_PER_S) as probe,
            PacedWriter(self._cluster.urls, self._some_key(), value, per_s=WRITES_PER_S),
        ):
            began = time.monotonic() + 2 * AFTER_S
            self._progress("probing while snapshots are written")
            self._wait_snapshots(forks, began)
            self._weigh()
            ended = time.monotonic()
            self._install(forks, probe)
            self.samples = probe.finish()
            found = forks.intervals()
        self.written = _around(found)
        self.quiet = quiet_windows(Window(began, ended), self.written)

    def _some_key(self) -> Callable[[], bytes]:
        """Keys that exist, one after the other by chance."""
        numbers = random.Random(SHARD)  # noqa: S311 -- keys to touch, not secrets
        return lambda: key_of(numbers.randrange(self._keys))

    def _wait_snapshots(self, forks: ForkWatch, began: float) -> None:
        """Wait until every replica has written some, and there was quiet between them."""

        def enough() -> bool:
            found = [interval for interval in forks.intervals() if interval[1] > began]
            each = [sum(pid == parent for parent, _, _ in found) for pid in self._pids()]
            whole = Window(began, time.monotonic())
            quiet = quiet_windows(whole, _around(found))
            still_busy = not quiet or quiet[-1].ended < whole.ended
            quiet_s = sum(window.ended - window.begun for window in quiet)
            return min(each) >= SNAPSHOTS_EACH and quiet_s >= QUIET_S_MIN and not still_busy

        self._cluster.wait_for(enough, "every replica has written snapshots", PHASE_TIMEOUT_S)

    def _weigh(self) -> None:
        for pid, name in self._pids().items():
            self.memory[name] = msgspec.structs.replace(
                self.memory[name],
                after_snapshots=resident_bytes(pid),
                peak=peak_resident_bytes(pid),
            )

    def _install(self, forks: ForkWatch, probe: Probe) -> None:
        """Stop a follower until the log that it needs is gone, and bring it back."""
        cluster = self._cluster
        leader = cluster.leader_of(SHARD)
        follower, *_ = (name for name in reversed(cluster.names) if name != leader)
        others = [name for name in cluster.names if name != follower]
        self._progress(f"stopping {follower} until the log that it needs is gone")
        probe.pause(follower)
        time.sleep(2 / PROBES_PER_S)
        cluster.stop_node(follower)
        known = max(shard_facts(cluster, name, SHARD)["last_index"] for name in others)
        cluster.wait_for(
            lambda: all(
                shard_facts(cluster, name, SHARD)["first_index"] > known for name in others
            ),
            f"the log is cut beyond what {follower} has",
            PHASE_TIMEOUT_S,
        )
        self._wait_no_snapshot(forks)
        self._progress(f"starting {follower}")
        begun = time.monotonic()
        cluster.start_node(follower)
        forks.watch(self._pids())
        cluster.wait_for(lambda: self._is_healthy(follower), f"{follower} answers", 120.0)
        probe.resume(follower)
        answering = time.monotonic()
        cluster.wait_for(
            lambda: "snapshot_installed" in _event_kinds(local_facts(cluster, follower)),
            f"{follower} has installed the leader's snapshot",
            PHASE_TIMEOUT_S,
        )
        self.install_s = time.monotonic() - answering
        cluster.wait_ready(_READY_TIMEOUT_S, only=(follower,))
        time.sleep(AFTER_S)
        self.installing = Window(begun, time.monotonic())

    def _is_healthy(self, name: str) -> bool:
        """Whether the node answers at all; one that installs a snapshot is not ready."""
        url = f"{self._cluster.node(name).url}/healthz"
        try:
            with urllib.request.urlopen(url, timeout=1.0) as response:  # noqa: S310 -- loopback
                return bool(response.status == 200)  # noqa: PLR2004 -- OK
        except (urllib.error.URLError, OSError):
            return False

    # --- restarts -------------------------------------------------------------------------------

    def restarts(self) -> None:
        """From the start to ready: one node beside the others, then all of them at once."""
        cluster = self._cluster
        self._progress("restarting one node")
        name = cluster.names[-1]
        cluster.kill(name)
        self.restart_s["one"] = self._seconds_until_ready((name,))
        wait_caught_up(cluster)
        self._progress("restarting all nodes")
        for name in cluster.names:
            cluster.kill(name)
        self.restart_s["all"] = self._seconds_until_ready(cluster.names)

    def _seconds_until_ready(self, names: tuple[str, ...]) -> float:
        begun = time.monotonic()
        for name in names:
            self._cluster.start_node(name)
        self._cluster.wait_ready(_READY_TIMEOUT_S, only=names)
        return time.monotonic() - begun

    # --- what came of it ------------------------------------------------------------------------

    def figures(self) -> list[Figure]:
        """Everything beside its target."""
        per_key = [m.per_key(self._keys, self._value_bytes) for m in self.memory.values()]
        quiet = within(self.samples, self.quiet)
        written = within(self.samples, self.written)
        installed = within(self.samples, [self.installing])
        worst = latencies(quiet, PUT, GET).worst_s
        allowed = max(STALL_S_MIN, STALL_FACTOR * worst) if worst is not None else None
        return [
            Figure("loading all keys in batches", self.fill_s, "s"),
            Figure(
                "memory per key beyond key and value, worst replica",
                max(per_key),
                "bytes",
                BYTES_PER_KEY_MAX,
            ),
            *_stalls("without a snapshot", quiet, None),
            *_stalls("while a snapshot is written", written, allowed),
            *_stalls("while one is sent and installed", installed, allowed),
            Figure("installing, from the follower's first answer", self.install_s, "s"),
            Figure("restart of one node until ready", self.restart_s["one"], "s", RESTART_S_MAX),
            Figure("restart of all nodes until ready", self.restart_s["all"], "s", RESTART_S_MAX),
        ]

    def details(self) -> dict[str, Any]:
        """What the figures come from; times are in seconds from the first window."""
        windows = {
            "without a snapshot": self.quiet,
            "while a snapshot is written": self.written,
            "while one is sent and installed": [self.installing],
        }
        zero = self.quiet[0].begun if self.quiet else 0.0
        return {
            "memory": self.memory,
            "windows": {
                name: [(round(a - zero, 2), round(b - zero, 2)) for a, b in found]
                for name, found in windows.items()
            },
            "latencies": {
                name: {
                    kind: latencies(within(self.samples, found), kind)
                    for kind in (PUT, GET, WAKE_UP)
                }
                for name, found in windows.items()
            },
            "worst of each second": _timeline(self.samples, zero),
            "worst": {
                name: _worst(within(self.samples, found), zero) for name, found in windows.items()
            },
        }


def _around(forks: list[tuple[int, float, float]]) -> list[Window]:
    """When a snapshot may have been felt."""
    return [Window(begun - BEFORE_S, ended + AFTER_S) for _, begun, ended in forks]


def quiet_windows(whole: Window, busy: list[Window]) -> list[Window]:
    """What is left of ``whole`` between the busy windows."""
    left = []
    begun = whole.begun
    for window in sorted(busy):
        if window.begun > begun:
            left.append(Window(begun, min(window.begun, whole.ended)))
        begun = max(begun, window.ended)
        if begun >= whole.ended:
            return left
    return [*left, Window(begun, whole.ended)]


def _stalls(when: str, samples: list[Sample], allowed: float | None) -> list[Figure]:
    requests = latencies(samples, PUT, GET)
    return [
        Figure(f"requests {when}", requests.count),
        Figure("  failed", sum(bool(sample.error) for sample in samples), at_most=0),
        Figure("  99th percentile", requests.p99_s, "s"),
        Figure("  worst latency", requests.worst_s, "s", allowed),
        Figure("  for comparison: worst wake-up", latencies(samples, WAKE_UP).worst_s, "s"),
    ]


def _worst(samples: list[Sample], zero: float) -> list[dict[str, Any]]:
    requests = [sample for sample in samples if sample.kind != WAKE_UP]
    requests.sort(key=lambda sample: sample.latency_s, reverse=True)
    return [
        {**sample._asdict(), "intended": round(sample.intended - zero, 3)}
        for sample in requests[:WORST_KEPT]
    ]


def _timeline(samples: list[Sample], zero: float) -> list[dict[str, Any]]:
    """The worst latency of each kind in each second: to see what happened when."""
    seconds: dict[int, dict[str, float]] = {}
    for sample in samples:
        worst = seconds.setdefault(math.floor(sample.intended - zero), {})
        worst[sample.kind] = max(worst.get(sample.kind, 0.0), round(sample.latency_s, 4))
    return [{"second": second, **seconds[second]} for second in sorted(seconds)]


def _event_kinds(facts: dict[str, Any]) -> set[str]:
    return {event["kind"] for event in facts["events"]}


def run(keys: int, value_bytes: int, setting: Setting) -> Report:
    """Fill one shard and measure everything about it."""
    options: Options = {"limits": {"snapshot_after_entries": SNAPSHOT_AFTER_ENTRIES}}
    with throwaway_cluster(
        setting.parent, shards=1, options=options, ready_timeout_s=_READY_TIMEOUT_S
    ) as cluster:
        large_shard = LargeShard(cluster, keys, value_bytes, setting.progress)
        large_shard.fill()
        large_shard.snapshots()
        large_shard.restarts()
    return setting.report(
        f"one shard of {keys:,} keys with {value_bytes}-byte values, 3 replicas",
        large_shard.figures(),
        details=large_shard.details(),
    )
