"""A node's figures in the text format of Prometheus, made from its engine's local status.

The engine counts for all HTTP workers of the node, so that a scrape shows the same whichever of
them it reaches, and no counter goes back when one is replaced. All labels are from fixed sets or
bounded by the cluster's size: names of nodes, numbers of shards. docs/metrics.md lists them.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from raftkv.status.facts import Histogram, HttpFacts, NodeFacts, ReplicaFacts
from raftkv.status.health import quorum_margin
from raftkv.status.merging import replicas_in_touch
from raftkv.version import __version__
from raftkv.web.serve.worker_metrics import WorkerMetrics

__all__ = ["CONTENT_TYPE", "WorkerMetrics", "expose"]

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class _Figure(NamedTuple):
    """One number of each row: the metric, the attribute of the row, what one unit of it is."""

    name: str
    path: str
    documentation: str
    scale: float = 1
    is_counter: bool = False


_SHARDS = (
    _Figure("generation", "generation", "Generation of the group that holds the shard"),
    _Figure("term", "term", "Raft term of this replica"),
    _Figure("commit_index", "commit_index", "Highest log index known to be committed"),
    _Figure("applied_index", "applied_index", "Highest log index applied to the state"),
    _Figure("keys", "keys", "Keys in the shard"),
    _Figure("bytes", "bytes", "Bytes of keys and values in the shard"),
    _Figure("log_bytes", "log_bytes", "Bytes of log entries that are not compacted yet"),
    _Figure("waiting_operations", "waiting", "Writes and reads that are not answered yet"),
    _Figure("idempotency_used", "idempotency.used", "Part of the idempotency table that is used"),
    _Figure(
        "idempotency_largest_share",
        "idempotency.largest_share",
        "Part of the idempotency table that one token and address have, who have most of it",
    ),
    _Figure("snapshot_index", "snapshot.index", "Last log index in the latest snapshot"),
    _Figure("snapshot_bytes", "snapshot.bytes", "Size of the latest snapshot"),
    _Figure(
        "snapshot_timestamp_seconds", "snapshot.at_us", "When the latest snapshot was made", 1e-6
    ),
    _Figure("elections", "elections", "Times that this replica became leader", is_counter=True),
    _Figure(
        "leader_changes", "leader_changes", "Times that this replica saw a leader", is_counter=True
    ),
)

_WORKERS = (
    _Figure("in_flight", "in_flight", "Data requests that are being worked on"),
    _Figure("body_bytes", "body_bytes", "Bytes of request bodies held in memory"),
    _Figure("worker_resident_memory_bytes", "rss_bytes", "Resident memory of a worker"),
    _Figure("worker_cpu_seconds", "cpu_s", "Processor time of a worker", is_counter=True),
)

_PEERS = (
    _Figure("connected", "connected", "1 while the link to the peer is up"),
    _Figure(
        "refused", "is_refused", "1 while handshakes with the peer are refused, by either side"
    ),
    _Figure("round_trip_seconds", "round_trip_ms", "Smoothed round trip time", 1e-3),
)

_NODE = (
    _Figure(
        "engine_waiting_operations",
        "metrics.waiting_operations",
        "Writes and reads of all shards led here that are not answered yet",
    ),
    _Figure(
        "engine_routed_in_flight",
        "metrics.routed_in_flight",
        "Requests forwarded to another node or waiting for a leader",
    ),
    _Figure("engine_groups_led", "metrics.groups_led", "Shards that this node leads"),
    _Figure("engine_wal_bytes", "metrics.wal_bytes", "Size of the write-ahead log on disk"),
    _Figure(
        "log_lines_dropped",
        "metrics.log_lines_dropped",
        "Lines of the node's log that standard error did not take",
        is_counter=True,
    ),
    _Figure("engine_stopping", "stopping", "1 while the node is shutting down"),
    _Figure(
        "disk_silent_seconds",
        "disk_silent_s",
        "For how long the disk has not answered, once that is more than 10 s; else 0",
    ),
    _Figure("disk_has_space", "has_space", "1 while writes are taken, 0 on a full disk"),
)

_KINDS = (
    ("requests", "kind", "metrics.requests", "Requests that the engine has finished, by kind"),
    ("refusals", "reason", "metrics.refused", "Requests that the engine has refused, by reason"),
    ("events", "kind", "metrics.events", "What happened to replicas of this node, by kind"),
    ("snapshots", "outcome", "metrics.snapshots", "Snapshots of this node's replicas"),
)


def expose(facts: NodeFacts | None, collectors: Iterable[Collector] = ()) -> bytes:
    """Return the exposition text; ``facts`` None means that the engine did not answer."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    registry.register(_EngineFacts(facts))
    if facts is not None and facts.pid is not None:
        pid = facts.pid
        ProcessCollector(pid=lambda: pid, registry=registry)
    return bytes(generate_latest(registry))


class _EngineFacts(Collector):
    """Figures from the engine's local status, taken as they are found."""

    def __init__(self, facts: NodeFacts | None) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Metric]:
        """Translate."""
        up = GaugeMetricFamily("raftkv_engine_up", "Whether the engine answered this scrape")
        up.add_metric([], 0.0 if self._facts is None else 1.0)
        yield up
        build = GaugeMetricFamily("raftkv_build_info", "Always 1", labels=["version"])
        build.add_metric([__version__], 1.0)
        yield build
        facts = self._facts
        if facts is None:
            return
        yield from _table("shard", facts.shards, "shard", "shard", _SHARDS)
        yield from _replication(facts.shards)
        yield from _load(facts.shards)
        peers = [link for link in facts.nodes if link.name != facts.node]
        yield from _table("peer", peers, "peer", "name", _PEERS)
        yield from _table("", [facts], "", "", _NODE)
        yield from _by_kind(facts)
        yield from _fdatasync(facts)
        yield from _stages(facts)
        yield from _http(facts.http)


def _table(
    family: str, rows: Sequence[object], label: str, label_path: str, figures: Sequence[_Figure]
) -> Iterable[Metric]:
    """Yield one family for each figure, with one series for each row that has it."""
    prefix = "raftkv_" + (f"{family}_" if family else "")
    for figure in figures:
        make = CounterMetricFamily if figure.is_counter else GaugeMetricFamily
        metric = make(prefix + figure.name, figure.documentation, labels=[label] if label else [])
        for row in rows:
            value = _number(row, figure.path)
            if value is not None:
                labels = [str(getattr(row, label_path))] if label else []
                metric.add_metric(labels, value * figure.scale)
        yield metric


def _replication(shards: Sequence[ReplicaFacts]) -> Iterable[Metric]:
    """What tells whether a shard can go on, and how far its replicas are apart."""
    leads = _per_shard("leader", "1 on the node whose replica leads the shard")
    has_leader = _per_shard(
        "has_leader", "1 while this replica leads the shard or hears from its leader"
    )
    replicas = _per_shard("replicas", "Replicas that the shard has")
    differs = _per_shard(
        "digest_mismatch", "1 once this replica's state was seen to differ from its leader's"
    )
    behind = _per_shard("apply_lag_entries", "Entries committed and not applied by this replica")
    margin = _per_shard(
        "quorum_margin",
        "On the leader: replicas in touch beyond the majority that it needs; -1: none is left",
    )
    lag = _per_shard(
        "replica_lag_entries",
        "On the leader: committed entries that the replica on node `replica` lacks on disk",
        "replica",
    )
    lag_s = _per_shard(
        "replica_lag_seconds",
        "On the leader: how long ago it committed the first entry that the replica lacks",
        "replica",
    )
    for row in shards:
        shard = str(row.shard)
        leads.add_metric([shard], float(row.role == "leader"))
        has_leader.add_metric([shard], float(row.leader is not None))
        replicas.add_metric([shard], float(len(row.replicas)))
        differs.add_metric([shard], float(row.digest_mismatch is not None))
        if row.commit_index is not None and row.applied_index is not None:
            behind.add_metric([shard], float(max(0, row.commit_index - row.applied_index)))
        if row.role == "leader":
            left = quorum_margin(len(row.replicas), replicas_in_touch(row))
            margin.add_metric([shard], float(left))
        for name, told in row.followers.items():
            for family, value in ((lag, told.lag_entries), (lag_s, told.lag_s)):
                if value is not None:
                    family.add_metric([shard, name], float(value))
    yield from (leads, has_leader, replicas, differs, behind, margin, lag, lag_s)


def _per_shard(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"raftkv_shard_{name}", documentation, labels=["shard", *labels])


def _load(shards: Sequence[ReplicaFacts]) -> Iterable[Metric]:
    family = CounterMetricFamily(
        "raftkv_shard_requests",
        "Operations that this replica has taken, by whether they read or write",
        labels=["shard", "kind"],
    )
    for row in shards:
        for kind, value in (("read", row.reads), ("write", row.writes)):
            if value is not None:
                family.add_metric([str(row.shard), kind], float(value))
    yield family


def _by_kind(facts: NodeFacts) -> Iterable[Metric]:
    for name, label, path, documentation in _KINDS:
        family = CounterMetricFamily(f"raftkv_{name}", documentation, labels=[label])
        counts: Mapping[str, int] = attrgetter(path)(facts)
        for kind, count in counts.items():
            family.add_metric([kind], float(count))
        yield family


def _fdatasync(facts: NodeFacts) -> Iterable[Metric]:
    if facts.fdatasync is not None:
        family = HistogramMetricFamily(
            "raftkv_wal_fdatasync_seconds", "Duration of one fdatasync of the write-ahead log"
        )
        _add_histogram(family, [], facts.fdatasync)
        yield family


def _stages(facts: NodeFacts) -> Iterable[Metric]:
    family = HistogramMetricFamily(
        "raftkv_stage_seconds", "Where a write's time went, by stage", labels=["stage"]
    )
    for stage, durations in facts.stages.items():
        _add_histogram(family, [stage], durations)
    yield family


def _http(http: HttpFacts) -> Iterable[Metric]:
    """What all HTTP workers have answered, and how each of them is."""
    requests = CounterMetricFamily(
        "raftkv_http_requests",
        "Requests that the node's HTTP workers have answered, by route and status",
        labels=["route", "status"],
    )
    for row in http.totals:
        requests.add_metric([row.route, str(row.status)], float(row.count))
    yield requests
    seconds = HistogramMetricFamily(
        "raftkv_http_request_seconds",
        "Time from the request's head to its complete answer",
        labels=["route"],
    )
    for route, durations in http.histograms.items():
        _add_histogram(seconds, [route], durations)
    yield seconds
    yield from _table("http", http.workers, "worker", "worker", _WORKERS)


def _add_histogram(family: HistogramMetricFamily, labels: list[str], durations: Histogram) -> None:
    bounds = [*map(str, durations.bounds_s), "+Inf"]
    counted = accumulate(durations.counts)
    family.add_metric(labels, list(zip(bounds, counted, strict=True)), durations.sum_s)


def _number(row: object, path: str) -> float | None:
    """Return the number at a path of attributes; None where one of them is not there."""
    value: object = row
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return float(value) if isinstance(value, (int, float)) else None
