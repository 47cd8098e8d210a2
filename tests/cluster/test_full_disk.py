"""Disks that fill up under real nodes: writes are refused truthfully, nothing stops, all heals."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import urllib3
from cluster_load import shard_tags, wait_replicas_agree
from small_disks import cluster_on_small_disks, fill

from raftkv import Client
from raftkv.testing import LocalCluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.machine_wide("mounts"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk"),
]

SEGMENT_BYTES = 2**20
VALUE = b"v" * 16_384
WRITES_MAX = 1000
OPTIONS = {"limits": {"wal_segment_bytes": SEGMENT_BYTES}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes with disks of 24 segments each."""
    directory = tmp_path_factory.mktemp("full")
    cluster = LocalCluster(directory, nodes=3, shards=2, options=OPTIONS)
    with cluster_on_small_disks(cluster, "24m"):
        yield cluster


class Writer:
    """Puts new keys without a client library that would try again, and remembers what it heard."""

    def __init__(self, cluster: LocalCluster, prefix: str) -> None:
        self._cluster = cluster
        self._http = urllib3.PoolManager(retries=False, timeout=15)
        with cluster.client(timeout_s=20) as client:
            tags = shard_tags(client).values()
        self._tags = itertools.cycle(tags)
        self._prefix = prefix
        self._number = 0
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.unknown: list[str] = []
        self.disk_full = 0

    def put(self, node: str) -> int:
        """Put one key at ``node``, to the shards in turn; return the status."""
        self._number += 1
        key = f"{next(self._tags)}/{self._prefix}/{self._number}"
        url = f"{self._cluster.node(node).url}/v1/kv/{key}"
        answer = self._http.request("PUT", url, body=VALUE)
        if answer.status in {200, 201}:
            self.acknowledged.append(key)
            return answer.status
        problem: dict[str, Any] = answer.json()
        assert problem["status"] == answer.status in {429, 503, 504, 507}, problem
        (self.refused if problem["definite"] else self.unknown).append(key)
        if answer.status == 507:
            assert problem["definite"] is True, problem
            assert "retry-after" in answer.headers
            self.disk_full += 1
        return answer.status

    def put_until(self, condition: Callable[[], bool], nodes: Sequence[str]) -> None:
        """Put at the nodes in turn until the condition holds."""
        at = itertools.cycle(nodes)
        for _ in range(WRITES_MAX):
            if condition():
                return
            self.put(next(at))
        raise AssertionError(f"not within {WRITES_MAX} writes; {len(self.acknowledged)} were taken")

    def judge(self) -> None:
        """What was acknowledged is there, what was refused for certain is not."""
        with self._cluster.client(timeout_s=20) as client:
            found = {entry.key.decode() for entry in client.scan(keys_only=True)}
        assert self.acknowledged
        assert not set(self.acknowledged) - found, "acknowledged, and lost"
        assert not set(self.refused) & found, "refused for certain, and applied"


def facts(cluster: LocalCluster, name: str) -> dict[str, Any]:
    """What a node says of itself."""
    with Client(cluster.node(name).url, timeout_s=20) as client:
        return dict(client.status("local"))


def has_space(cluster: LocalCluster, name: str) -> bool:
    """Whether a node takes writes."""
    return bool(facts(cluster, name)["has_space"])


def data(cluster: LocalCluster, name: str) -> Path:
    """Where a node's disk is mounted."""
    return cluster.node(name).directory / "data"


def assert_reads_go_on(cluster: LocalCluster, key: str) -> None:
    """Every node serves linearizable reads and scans."""
    for name in cluster.names:
        with Client(cluster.node(name).url, timeout_s=20) as client:
            entry = client.get(key)
            assert entry is not None
            assert entry.value == VALUE
            assert any(client.scan(limit=5))


def pids(cluster: LocalCluster) -> list[int]:
    """The engines' process ids; a node that died and came back has another one."""
    assert all(cluster.process(name).is_running for name in cluster.names), cluster.logs()
    return [int(facts(cluster, name)["pid"]) for name in cluster.names]


def test_one_full_disk(cluster: LocalCluster) -> None:
    """Its shards are led elsewhere, and take many more segments of writes than it has room for."""
    before = pids(cluster)
    full = cluster.leader_of(0)
    assert full is not None
    others = [name for name in cluster.names if name != full]
    writer = Writer(cluster, "one")
    writer.put(full)
    ballast = fill(data(cluster, full))
    writer.put_until(lambda: not has_space(cluster, full), [full])

    # Leadership moves to a node with space, and writes are served again, at every node.
    cluster.wait_for(lambda: not _led(cluster, full), f"{full} leads nothing")
    taken = len(writer.acknowledged)
    enough = taken + 3 * SEGMENT_BYTES // len(VALUE)
    writer.put_until(lambda: len(writer.acknowledged) >= enough, [*others, full])
    assert_reads_go_on(cluster, writer.acknowledged[0])
    assert not has_space(cluster, full)
    assert not cluster.is_ready(full)
    assert pids(cluster) == before, "a node has died of its full disk"

    ballast.unlink()
    cluster.wait_for(lambda: has_space(cluster, full), f"{full} has space again")
    wait_replicas_agree(cluster)
    cluster.wait_ready()
    writer.put(full)
    writer.judge()
    assert pids(cluster) == before


def _led(cluster: LocalCluster, name: str) -> list[int]:
    return [row["shard"] for row in facts(cluster, name)["shards"] if row["role"] == "leader"]


def test_all_disks_full(cluster: LocalCluster) -> None:
    """Writes are refused with 507, for certain; reads go on; with space all goes on by itself."""
    before = pids(cluster)
    writer = Writer(cluster, "all")
    writer.put("n1")
    ballasts = [fill(data(cluster, name)) for name in cluster.names]
    # A leader may have room itself and only followers without: that is no room either.
    writer.put_until(
        lambda: sum(has_space(cluster, name) for name in cluster.names) < 2, cluster.names
    )
    refused = writer.disk_full
    for name in cluster.names * 4:
        assert writer.put(name) == 507
    assert writer.disk_full == refused + 4 * len(cluster.names)
    assert_reads_go_on(cluster, writer.acknowledged[0])
    spacious = [name for name in cluster.names if has_space(cluster, name)]
    assert len(spacious) < 2
    assert [name for name in cluster.names if cluster.is_ready(name)] == spacious

    for ballast in ballasts:
        ballast.unlink()
    cluster.wait_for(
        lambda: all(has_space(cluster, name) for name in cluster.names), "all have space again"
    )
    cluster.wait_ready()
    for name in cluster.names:
        assert writer.put(name) in {200, 201}
    writer.judge()
    wait_replicas_agree(cluster)
    assert pids(cluster) == before
