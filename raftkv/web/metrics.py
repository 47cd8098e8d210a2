"""A node's figures in the text format of Prometheus, made from its engine's local status.

The engine counts for all HTTP workers of the node, so that a scrape shows the same whichever of
them it reaches, and no counter goes back when one is replaced. All labels are from fixed sets or
bounded by the cluster's size: names of nodes, numbers of shards. docs/metrics.md lists them.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from raftkv.core.health import Facts, rows
from raftkv.version import __version__
from raftkv.web.worker_metrics import WorkerMetrics

__all__ = ["CONTENT_TYPE", "WorkerMetrics", "expose"]

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class _Figure(NamedTuple):
    """One number of each row: the metric, where it is in the row, what one unit of it is."""

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
    _Figure("refused", "refused", "1 while handshakes with the peer are refused, by either side"),
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
    _Figure("disk_has_space", "has_space", "1 while writes are taken, 0 on a full disk"),
)

_KINDS = (
    ("requests", "kind", "metrics.requests", "Requests that the engine has finished, by kind"),
    ("refusals", "reason", "metrics.refused", "Requests that the engine has refused, by reason"),
    ("events", "kind", "metrics.events", "What happened to replicas of this node, by kind"),
    ("snapshots", "outcome", "metrics.snapshots", "Snapshots of this node's replicas"),
)


def expose(facts: Facts | None, collectors: Iterable[Collector] = ()) -> bytes:
    """Return the exposition text; ``facts`` None means that the engine did not answer."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    registry.register(_EngineFacts(facts))
    pid = None if facts is None else facts.get("pid")
    if isinstance(pid, int):
        ProcessCollector(pid=lambda: pid, registry=registry)
    return bytes(generate_latest(registry))


class _EngineFacts(Collector):
    """Figures from the engine's local status, taken as they are found."""

    def __init__(self, facts: Facts | None) -> None:
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
        shards = rows(facts, "shards")
        yield from _table("shard", shards, "shard", "shard", _SHARDS)
        yield from _replication(shards)
        yield from _load(shards)
        yield from _table("peer", _peers(facts), "peer", "name", _PEERS)
        yield from _table("", [facts], "", "", _NODE)
        yield from _by_kind(facts)
        yield from _fdatasync(facts)
        yield from _stages(facts)
        yield from _http(facts)


def _table(
    family: str, listed: Sequence[Facts], label: str, label_path: str, figures: Sequence[_Figure]
) -> Iterable[Metric]:
    """Yield one family for each figure, with one series for each row that has it."""
    prefix = "raftkv_" + (f"{family}_" if family else "")
    for figure in figures:
        make = CounterMetricFamily if figure.is_counter else GaugeMetricFamily
        metric = make(prefix + figure.name, figure.documentation, labels=[label] if label else [])
        for row in listed:
            value = _number(row, figure.path)
            if value is not None:
                metric.add_metric([str(row.get(label_path))] if label else [], value * figure.scale)
        yield metric


def _replication(shards: Sequence[Facts]) -> Iterable[Metric]:
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
        shard, count = str(row.get("shard")), len(row.get("replicas") or ())
        followers = _mapping(row.get("followers"))
        leads.add_metric([shard], float(row.get("role") == "leader"))
        has_leader.add_metric([shard], float(bool(row.get("leader"))))
        replicas.add_metric([shard], float(count))
        differs.add_metric([shard], float(bool(row.get("digest_mismatch"))))
        committed, applied = _number(row, "commit_index"), _number(row, "applied_index")
        if committed is not None and applied is not None:
            behind.add_metric([shard], max(0.0, committed - applied))
        if row.get("role") == "leader":
            there = 1 + sum(bool(_mapping(told).get("in_touch")) for told in followers.values())
            margin.add_metric([shard], float(max(-1, there - (count // 2 + 1))))
        for name, told in followers.items():
            for family, path in ((lag, "lag_entries"), (lag_s, "lag_s")):
                value = _number(_mapping(told), path)
                if value is not None:
                    family.add_metric([shard, str(name)], value)
    yield from (leads, has_leader, replicas, differs, behind, margin, lag, lag_s)


def _per_shard(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"raftkv_shard_{name}", documentation, labels=["shard", *labels])


def _load(shards: Sequence[Facts]) -> Iterable[Metric]:
    family = CounterMetricFamily(
        "raftkv_shard_requests",
        "Operations that this replica has taken, by whether they read or write",
        labels=["shard", "kind"],
    )
    for row in shards:
        for kind, path in (("read", "reads"), ("write", "writes")):
            value = _number(row, path)
            if value is not None:
                family.add_metric([str(row.get("shard")), kind], value)
    yield family


def _peers(facts: Facts) -> list[Facts]:
    """Return the links to the others, as numbers."""
    node = facts.get("node")
    return [
        {**row, "connected": bool(row["connected"]), "refused": row.get("refused") is not None}
        for row in rows(facts, "nodes")
        if row.get("name") != node and "connected" in row
    ]


def _by_kind(facts: Facts) -> Iterable[Metric]:
    for name, label, path, documentation in _KINDS:
        family = CounterMetricFamily(f"raftkv_{name}", documentation, labels=[label])
        for kind, count in _mapping(_at(facts, path)).items():
            if isinstance(count, int):
                family.add_metric([str(kind)], float(count))
        yield family


def _fdatasync(facts: Facts) -> Iterable[Metric]:
    durations = facts.get("fdatasync")
    if isinstance(durations, Mapping):
        family = HistogramMetricFamily(
            "raftkv_wal_fdatasync_seconds", "Duration of one fdatasync of the write-ahead log"
        )
        _add_histogram(family, [], durations)
        yield family


def _stages(facts: Facts) -> Iterable[Metric]:
    family = HistogramMetricFamily(
        "raftkv_stage_seconds", "Where a write's time went, by stage", labels=["stage"]
    )
    for stage, durations in _mapping(facts.get("stages")).items():
        _add_histogram(family, [str(stage)], durations)
    yield family


def _http(facts: Facts) -> Iterable[Metric]:
    """What all HTTP workers have answered, and how each of them is."""
    http = _mapping(facts.get("http"))
    requests = CounterMetricFamily(
        "raftkv_http_requests",
        "Requests that the node's HTTP workers have answered, by route and status",
        labels=["route", "status"],
    )
    for row in rows(http, "totals"):
        count = _number(row, "count")
        if count is not None:
            requests.add_metric([str(row.get("route")), str(row.get("status"))], count)
    yield requests
    seconds = HistogramMetricFamily(
        "raftkv_http_request_seconds",
        "Time from the request's head to its complete answer",
        labels=["route"],
    )
    for route, durations in _mapping(http.get("histograms")).items():
        _add_histogram(seconds, [str(route)], durations)
    yield seconds
    yield from _table("http", rows(http, "workers"), "worker", "worker", _WORKERS)


def _add_histogram(family: HistogramMetricFamily, labels: list[str], durations: Facts) -> None:
    bounds = [*map(str, durations["bounds_s"]), "+Inf"]
    counted = accumulate(durations["counts"])
    family.add_metric(labels, list(zip(bounds, counted, strict=True)), durations["sum_s"])


def _mapping(value: object) -> Facts:
    return value if isinstance(value, Mapping) else {}


def _at(row: Facts, path: str) -> Any:
    value: Any = row
    for name in path.split("."):
        value = _mapping(value).get(name)
    return value


def _number(row: Facts, path: str) -> float | None:
    value = _at(row, path)
    return float(value) if isinstance(value, (int, float)) else None
