"""Figures for Prometheus: of this HTTP worker, and of its engine as it reports itself.

Each worker counts for itself, under its own label ``worker``: a scrape reaches one of them and
shows that one's series, which therefore never jump back. Add them up in the query
(``sum without (worker)``). The engine's figures are asked for at each scrape and are the same
through every worker. All labels are from fixed sets or bounded by the cluster's own size.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

_SHARD_FIGURES = {
    "generation": "Generation of the group that holds the shard",
    "term": "Raft term of this replica",
    "commit_index": "Highest log index known to be committed",
    "applied_index": "Highest log index applied to the state",
    "keys": "Keys in the shard",
    "bytes": "Bytes of keys and values in the shard",
    "log_bytes": "Bytes of log entries that are not compacted yet",
}


_NODE_FIGURES = ("uptime_s", "rss_bytes", "cpu_s", "fdatasync_ms")


class WorkerMetrics:
    """The counters of one worker; label children are looked up once and kept."""

    def __init__(self, worker: int) -> None:
        self.registry = CollectorRegistry()
        self._worker = str(worker)
        self._requests = Counter(
            "raftkv_http_requests",
            "Requests answered, by route and status",
            ("worker", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "raftkv_http_request_seconds",
            "Time from the request's head to its complete answer",
            ("worker", "route"),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.in_flight = self._gauge("in_flight", "Data requests that are being worked on")
        self.body_bytes = self._gauge("body_bytes", "Bytes of request bodies held in memory")
        self._counts: dict[tuple[str, int], Counter] = {}
        self._times: dict[str, Histogram] = {}
        ProcessCollector(registry=self.registry)

    def _gauge(self, name: str, documentation: str) -> Gauge:
        gauge = Gauge(f"raftkv_http_{name}", documentation, ("worker",), registry=self.registry)
        return gauge.labels(self._worker)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        try:
            self._counts[route, status].inc()
            self._times[route].observe(seconds)
        except KeyError:
            self._counts[route, status] = self._requests.labels(self._worker, route, str(status))
            self._times[route] = self._seconds.labels(self._worker, route)
            self._counts[route, status].inc()
            self._times[route].observe(seconds)

    def expose(self, facts: Mapping[str, Any] | None) -> bytes:
        """Return the exposition text; ``facts`` None means that the engine did not answer."""
        engine = CollectorRegistry()
        engine.register(_EngineFacts(facts))
        return bytes(generate_latest(self.registry)) + bytes(generate_latest(engine))


class _EngineFacts(Collector):
    """Figures from the engine's local status, taken as they are found."""

    def __init__(self, facts: Mapping[str, Any] | None) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("raftkv_engine_up", "Whether the engine answered this scrape")
        up.add_metric([], 0.0 if self._facts is None else 1.0)
        yield up
        if self._facts is None:
            return
        yield from self._shards(_rows(self._facts.get("shards")))
        yield from self._replication(_rows(self._facts.get("shards")))
        yield from self._peers(_rows(self._facts.get("nodes")))
        yield from self._fdatasync(self._facts.get("fdatasync"))
        yield from self._engine(self._facts.get("metrics"))
        yield from self._engine({name: self._facts.get(name) for name in _NODE_FIGURES})

    def _shards(self, shards: list[Mapping[str, Any]]) -> Iterable[GaugeMetricFamily]:
        leads = GaugeMetricFamily(
            "raftkv_shard_leader", "1 on the node whose replica leads the shard", labels=["shard"]
        )
        for row in shards:
            leads.add_metric([str(row.get("shard"))], float(row.get("role") == "leader"))
        yield leads
        for name, documentation in _SHARD_FIGURES.items():
            family = GaugeMetricFamily(f"raftkv_shard_{name}", documentation, labels=["shard"])
            for row in shards:
                if _is_number(row.get(name)):
                    family.add_metric([str(row.get("shard"))], float(row[name]))
            yield family

    def _replication(self, shards: list[Mapping[str, Any]]) -> Iterable[Metric]:
        """What tells whether a shard can go on, and how far its replicas are apart."""
        has_leader = GaugeMetricFamily(
            "raftkv_shard_has_leader",
            "1 while this replica leads the shard or hears from its leader",
            labels=["shard"],
        )
        replicas = GaugeMetricFamily(
            "raftkv_shard_replicas", "Replicas that the shard has", labels=["shard"]
        )
        differs = GaugeMetricFamily(
            "raftkv_shard_digest_mismatch",
            "1 once this replica's state was seen to differ from its leader's",
            labels=["shard"],
        )
        elections = CounterMetricFamily(
            "raftkv_shard_elections", "Times that this replica became leader", labels=["shard"]
        )
        lag = GaugeMetricFamily(
            "raftkv_shard_replica_lag_entries",
            "On the leader: committed entries that the replica on node `replica` lacks on disk",
            labels=["shard", "replica"],
        )
        for row in shards:
            shard = str(row.get("shard"))
            has_leader.add_metric([shard], float(bool(row.get("leader"))))
            replicas.add_metric([shard], float(len(row.get("replicas") or ())))
            differs.add_metric([shard], float(bool(row.get("digest_mismatch"))))
            elections.add_metric([shard], float(row.get("elections") or 0))
            for replica, match_index in (row.get("match") or {}).items():
                behind = max(0, row.get("commit_index", 0) - match_index)
                lag.add_metric([shard, str(replica)], float(behind))
        yield from (has_leader, replicas, differs, elections, lag)

    def _fdatasync(self, durations: Any) -> Iterable[Metric]:
        if not isinstance(durations, Mapping):
            return
        family = HistogramMetricFamily(
            "raftkv_wal_fdatasync_seconds", "Duration of one fdatasync of the write-ahead log"
        )
        bounds = [*map(str, durations["bounds_s"]), "+Inf"]
        counted = list(accumulate(durations["counts"]))
        family.add_metric([], list(zip(bounds, counted, strict=True)), durations["sum_s"])
        yield family

    def _peers(self, nodes: list[Mapping[str, Any]]) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "raftkv_peer_connected", "1 while the link to the peer is up", labels=["peer"]
        )
        for row in nodes:
            if isinstance(row.get("connected"), bool):
                family.add_metric([str(row.get("name"))], float(row["connected"]))
        yield family

    def _engine(self, figures: Any) -> Iterable[GaugeMetricFamily]:
        if not isinstance(figures, Mapping):
            return
        for name, value in figures.items():
            if not str(name).isidentifier():
                continue
            family = f"raftkv_engine_{name}"
            if _is_number(value):
                yield GaugeMetricFamily(family, "A figure of the engine", value=float(value))
            elif isinstance(value, Mapping):
                kinds = GaugeMetricFamily(family, "Figures of the engine", labels=["kind"])
                for kind, count in value.items():
                    if _is_number(count):
                        kinds.add_metric([str(kind)], float(count))
                yield kinds


def _rows(value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, (list, tuple)):
        return []
    return [row for row in value if isinstance(row, Mapping)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
