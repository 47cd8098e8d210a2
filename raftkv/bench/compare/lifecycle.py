"""How soon writes succeed after a leader was killed, and after a cluster was started."""

import contextlib
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from statistics import median

from raftkv.bench.cluster import NODES, addresses_of, key_of_each_shard, throwaway_cluster
from raftkv.bench.compare.stores import SHARDS
from raftkv.bench.load.dialects import DIALECTS
from raftkv.bench.load.first_write import first_write
from raftkv.bench.measures.failover import kill_once
from raftkv.testing import LocalCluster
from raftkv.testing.etcd_cluster import EtcdCluster

_KEY, _VALUE = b"written-first", b"x"


def raftkv_kills(directory: Path) -> Generator[float, None, None]:
    """Seconds without writes of each kill of a leader, without end."""
    with throwaway_cluster(directory, shards=SHARDS) as cluster:
        with cluster.client() as client:
            keys = key_of_each_shard(client, SHARDS)
        while True:
            for shard, key in keys.items():
                yield kill_once(cluster, shard, key, freeze=False).seconds


def etcd_kills(directory: Path) -> Generator[float, None, None]:
    """The same for the leader of etcd, with etcd's own time-outs."""
    request = DIALECTS["etcd"].put(_KEY, _VALUE)
    with EtcdCluster(directory / "etcd", nodes=NODES) as cluster:
        while True:
            leader = cluster.leader()
            if leader is None:
                time.sleep(0.05)
                continue
            others = addresses_of([url for name, url in cluster.urls.items() if name != leader])
            killed_at = time.monotonic()
            cluster.process(leader).kill()
            seconds = first_write(others, request) - killed_at
            cluster.start_node(leader)
            cluster.wait_ready()
            yield seconds


def raftkv_start(parent: Path) -> float:
    """Seconds from starting three nodes, made ready by ``init``, to the first write."""
    with tempfile.TemporaryDirectory(prefix="raftkv-start-", dir=parent) as directory:
        cluster = LocalCluster(Path(directory) / "start", nodes=NODES, shards=SHARDS)
        with contextlib.ExitStack() as stack:
            stack.callback(cluster.stop)
            cluster.prepare()
            begun = time.monotonic()
            for name in cluster.names:
                cluster.start_node(name)
            request = DIALECTS["raftkv"].put(_KEY, _VALUE)
            return first_write(addresses_of(cluster.urls), request) - begun


def etcd_start(parent: Path) -> float:
    """The same for three members with empty directories."""
    with tempfile.TemporaryDirectory(prefix="raftkv-start-", dir=parent) as directory:
        cluster = EtcdCluster(Path(directory) / "etcd", nodes=NODES)
        with contextlib.closing(cluster):
            cluster.prepare()
            begun = time.monotonic()
            for name in cluster.names:
                cluster.start_node(name)
            request = DIALECTS["etcd"].put(_KEY, _VALUE)
            return first_write(addresses_of(list(cluster.urls.values())), request) - begun


def summary(seconds: list[float]) -> dict[str, float]:
    """What is compared of a set of them."""
    return {"median": median(seconds), "worst": max(seconds)}
