"""Figures for Prometheus: true to the facts, whatever these are, and bounded in number."""

import os
import threading
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from raftkv.status.durations import DurationCounts
from raftkv.status.facts import NodeFacts, read
from raftkv.web.ops.metrics import expose
from raftkv.web.serve.worker_metrics import WorkerMetrics

_COUNTS = DurationCounts((0.01, 0.1))
for _seconds in (0.001, 0.05, 7.0):
    _COUNTS.note(_seconds)

LEADER: dict[str, Any] = {
    "shard": 3,
    "role": "leader",
    "leader": "n1",
    "replicas": ["n1", "n2", "n3"],
    "commit_index": 20,
    "applied_index": 18,
    "elections": 2,
    "leader_changes": 4,
    "waiting": 6,
    "idempotency": {"used": 0.9, "largest_share": 0.8},
    "reads": 7,
    "writes": 8,
    "snapshot": {"index": 5, "bytes": 900, "at_us": 2_000_000},
    "followers": {
        "n2": {"lag_entries": 0, "lag_s": 0.0, "in_touch": True},
        "n3": {"lag_entries": 12, "lag_s": 3.5, "in_touch": False},
    },
}
FACTS: dict[str, Any] = {
    "node": "n1",
    "pid": os.getpid(),
    "has_space": True,
    "disk_silent_s": 12.5,
    "nodes": [
        {"name": "n1", "connected": True, "round_trip_ms": 0.0},
        {"name": "n2", "connected": True, "round_trip_ms": 1.5},
        {"name": "n3", "connected": False, "round_trip_ms": None},
    ],
    "shards": [LEADER],
    "fdatasync": msgspec.to_builtins(_COUNTS.histogram()),
    "stages": {"wal": msgspec.to_builtins(_COUNTS.histogram())},
    "metrics": {"refused": {"busy": 4}, "snapshots": {"written": 1, "failed": 0}},
}


def samples(facts: dict[str, Any] | None) -> dict[tuple[str, ...], float]:
    """Return each series as (name, label values in the order of their labels' names)."""
    text = expose(None if facts is None else read(facts, NodeFacts)).decode()
    found = [s for family in text_string_to_metric_families(text) for s in family.samples]
    by_name = {(s.name, *(value for _, value in sorted(s.labels.items()))): s.value for s in found}
    assert len(by_name) == len(found), "a series is there twice"
    return by_name


def test_figures_of_a_leader() -> None:
    """Lag, margin, load, snapshots and peers in base units, counters as counters."""
    found = samples(FACTS)
    expected = {
        ("raftkv_shard_apply_lag_entries", "3"): 2,
        ("raftkv_shard_quorum_margin", "3"): 0,
        ("raftkv_shard_replica_lag_entries", "n3", "3"): 12,
        ("raftkv_shard_replica_lag_seconds", "n3", "3"): 3.5,
        ("raftkv_shard_elections_total", "3"): 2,
        ("raftkv_shard_leader_changes_total", "3"): 4,
        ("raftkv_shard_waiting_operations", "3"): 6,
        ("raftkv_shard_idempotency_used", "3"): 0.9,
        ("raftkv_shard_idempotency_largest_share", "3"): 0.8,
        ("raftkv_shard_requests_total", "write", "3"): 8,
        ("raftkv_shard_snapshot_timestamp_seconds", "3"): 2,
        ("raftkv_peer_round_trip_seconds", "n2"): 0.0015,
        ("raftkv_peer_connected", "n3"): 0,
        ("raftkv_refusals_total", "busy"): 4,
        ("raftkv_snapshots_total", "written"): 1,
        ("raftkv_disk_has_space",): 1,
        ("raftkv_disk_silent_seconds",): 12.5,
        ("raftkv_wal_fdatasync_seconds_bucket", "0.1"): 2,
        ("raftkv_wal_fdatasync_seconds_count",): 3,
        ("raftkv_stage_seconds_bucket", "+Inf", "wal"): 3,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["process_resident_memory_bytes",] > 0
    assert ("raftkv_peer_connected", "n1") not in found
    assert ("raftkv_peer_round_trip_seconds", "n3") not in found


def test_without_an_engine() -> None:
    """It is said that the engine is silent, and nothing is made up."""
    assert set(samples(None)) == {("raftkv_engine_up",), ("raftkv_build_info", "0.1.0")}


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"shards": [{"shard": 0}], "nodes": [{"name": "n2"}]},
        {"shards": [{"shard": 0, "role": "leader", "followers": {"n": {}}, "term": 3}]},
    ],
)
def test_what_is_not_told_is_no_series(facts: dict[str, Any]) -> None:
    """It is left out; it is never a zero, which would be a statement."""
    found = samples({"node": "n1", **facts})
    assert found["raftkv_engine_up",] == 1
    assert ("raftkv_shard_keys", "0") not in found
    assert ("raftkv_peer_round_trip_seconds", "n2") not in found


def test_reports_tell_each_request_once() -> None:
    """Counted from several threads, nothing is lost and nothing told twice."""
    metrics = WorkerMetrics(4)
    metrics.in_flight = lambda: 3

    def count() -> None:
        for _ in range(500):
            metrics.observe("kv_get", 200, 0.002)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = metrics.report()
    assert [(a.route, a.status, a.count) for a in report.answered] == [("kv_get", 200, 2000)]
    assert sum(report.durations[0].counts) == 2000
    assert (report.worker, report.pid, report.in_flight) == (4, os.getpid(), 3)
    assert metrics.report().answered == ()
